"""The step kernel: one token of Liger attention, a whole layer in one launch.

A program owns a block of value columns of one key/value head's state. It reads its [D, BLOCK_V] tile of the state
once, updates it, and reads it out for all query heads of the group; beside that it attends to the window for the same
columns. Features and window scores are recomputed by every program of a head: they are a few thousand operations on
rows that sit in the cache, and sharing them would take a second launch.
"""

import triton
import triton.language as tl

from liger_export.kernels.features import key_features, log_gates, rotated, softmax_rows
from liger_export.kernels.overlap import wait_for_activations

__all__ = ["step_kernel"]


@triton.jit
def step_kernel(
    query,
    key,
    value,
    cos,
    sin,
    position_ids,
    state,
    window_key,
    window_value,
    output,
    next_state,
    next_window_key,
    next_window_value,
    query_stride,
    key_stride,
    value_stride,
    gate_normalizer,
    recurrent_weight,
    MIXER: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    RING: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
    READS_AHEAD: tl.constexpr,
):
    """One token of B sequences. Grid (ceil(D / BLOCK_V), G, B).

    Args:
        query: [B, G * R * D] of a row stride, as projected; key and value: [B, G * D]. They may be parts of one
            packed row: a stride says how many elements lie between one sequence's row and the next.
        cos: float32 [B, D / 2] of the rotary angles; sin: likewise.
        position_ids: int64 [B], -1 for no token.
        state: float32 [B, G, D, D].
        window_key: [B, G, W, D], rotated; window_value: likewise, not rotated.
        output: [B, G * R * D].
        next_state: float32 [B, G, D, D], may be ``state``.
        next_window_key: [B, G, W, D]; ``window_key`` itself if RING; next_window_value: likewise.
        query_stride: elements; key_stride, value_stride: likewise.
        gate_normalizer: divides the log gates.
        recurrent_weight: share of the recurrence in the output.
        MIXER: of ``plans.MIXER_NUMBERS``.
        G: key/value heads. R: query heads for each. D: head size. W: keys in the window.
        BLOCK_R, BLOCK_D, BLOCK_W: R, D and W as powers of two, at least 8, 16 and 16. BLOCK_V: value columns of a
            program.
        RING: the window is updated in place and the row of position p is p % W; otherwise rows are oldest first and
            move to the next buffers. Programs of a head cannot wait for each other, so they cannot shift rows that
            all of them read; in a ring they replace one row that none of them reads.
        PRECISION: of float32 products, "ieee", "tf32x3" or "tf32".
        PDL: begin before the kernel before has ended.
        READS_AHEAD: read positions, state and window before that, too: where the kernel before writes none of them.
    """
    if not READS_AHEAD:
        wait_for_activations(PDL)
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    group, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + group
    dims = tl.arange(0, BLOCK_D)[None, :]
    real_dims, real_columns = dims < D, columns < D
    position = tl.load(position_ids + sequence)
    is_token = position >= 0

    # The state's tile first: it comes from furthest away and depends on nothing.
    tile = head * D * D + tl.arange(0, BLOCK_D)[:, None] * D + columns
    real_tile = (tl.arange(0, BLOCK_D)[:, None] < D) & real_columns
    memory = tl.load(state + tile, mask=real_tile, other=0.0)

    # The new token takes row ``new``, that of the oldest key once the window is full; -1 if there is no token.
    rows = tl.arange(0, BLOCK_W)[:, None]
    new = position % W if RING else tl.where(position < W, position, 0)
    new = tl.where(is_token, new, -1).to(tl.int32)
    # No token says nothing about how many rows are filled: all of them are copied as they are.
    held = tl.where(is_token, tl.minimum(position, W), W).to(tl.int32)
    is_kept = (rows < held) & (rows != new)
    buffer = head * W * D + rows * D
    keys = tl.load(window_key + buffer + dims, mask=is_kept & real_dims, other=0.0)
    values = tl.load(window_value + buffer + columns, mask=is_kept & real_columns, other=0.0)

    # Projections, rotary embedding
    if READS_AHEAD:
        wait_for_activations(PDL)
    key_row = key + sequence * key_stride + group * D
    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    angle = sequence * (D // 2) + dims % (D // 2)
    cosine = tl.load(cos + angle, mask=real_dims, other=0.0)
    sine = tl.load(sin + angle, mask=real_dims, other=0.0)
    new_key = tl.load(key_row + dims, mask=real_dims, other=0.0)
    new_partner = tl.load(key_row + partners, mask=real_dims, other=0.0)
    new_value = tl.load(value + sequence * value_stride + group * D + columns, mask=real_columns, other=0.0)
    members = tl.arange(0, BLOCK_R)[:, None]
    heads = sequence * query_stride + (group * R + members) * D
    real_heads = (members < R) & real_dims
    queries = tl.load(query + heads + dims, mask=real_heads, other=0.0)
    query_partners = tl.load(query + heads + partners, mask=real_heads, other=0.0)

    rotated_key = rotated(new_key, new_partner, cosine, sine, dims, D).to(keys.dtype)
    rotated_query = rotated(queries, query_partners, cosine, sine, dims, D).to(keys.dtype)

    # Recurrence: S = diag(exp g) S + k v^T, o = S^T q
    wide_key = new_key.to(tl.float32)
    decay = tl.where(is_token, tl.exp(log_gates(wide_key, real_dims, gate_normalizer)), 1.0)
    written = tl.where(is_token, key_features(wide_key, real_dims, MIXER), 0.0)
    # Blanked, not multiplied by 0: padding may hold anything.
    added = tl.where(is_token, new_value, 0.0).to(tl.float32)
    memory = tl.trans(decay) * memory + tl.trans(written) * added
    tl.store(next_state + tile, memory, mask=real_tile)
    features = softmax_rows(queries.to(tl.float32), real_dims)
    # Heads, the fewest, stand last in every product: tensor cores take 8 of them there, but 16 in the first place.
    read = tl.dot(tl.trans(memory), tl.trans(features), input_precision=PRECISION)

    # Window: softmax(q . k / sqrt(D)) over rows, which need no order
    is_new = rows == new
    keys = tl.where(is_new, rotated_key, keys)
    values = tl.where(is_new, new_value, values)
    scores = tl.dot(keys, tl.trans(rotated_query), input_precision=PRECISION) * (D**-0.5)
    scores = tl.where(rows < tl.minimum(position + 1, W), scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, axis=0)[None, :])
    weighted = tl.dot(tl.trans(values), powers.to(values.dtype), input_precision=PRECISION)
    windowed = weighted / tl.sum(powers, axis=0)[None, :]

    mixed = recurrent_weight * read + (1 - recurrent_weight) * windowed
    mixed = tl.where(is_token, mixed, 0.0).to(output.dtype.element_ty)
    members = tl.arange(0, BLOCK_R)[None, :]
    out = (head * R + members) * D + tl.trans(columns)
    tl.store(output + out, mixed, mask=(members < R) & tl.trans(real_columns))

    in_block = (dims >= tl.program_id(0) * BLOCK_V) & (dims < (tl.program_id(0) + 1) * BLOCK_V)
    if RING:
        stored = is_new
        target = buffer
    else:
        stored = rows < W
        shifted = tl.where(position < W, rows, tl.where(rows == 0, W - 1, rows - 1))
        target = head * W * D + shifted * D
    tl.store(next_window_key + target + dims, keys, mask=stored & in_block & real_dims)
    tl.store(next_window_value + target + columns, values, mask=stored & real_columns)
