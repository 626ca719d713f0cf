"""The step kernel: one token of a layer's Liger attention in one launch.

A program owns a block of value columns of one key/value head's state. It reads its [D, BLOCK_V] tile of the state
once, updates it, and multiplies it by all query heads of that key/value head. It also computes window attention for the
same columns. Every program of a head recomputes features and window scores: a few thousand operations on cached rows,
cheaper than a second launch to share them.
"""

import triton
import triton.language as tl

from liger_export.kernels.dependent_launch import wait_for_activations
from liger_export.kernels.features import key_features, log_gates, rotated, softmax_rows

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
        query: [B, G * R * D], as projected. key, value: [B, G * D]. All three may be slices of one packed row.
        cos, sin: float32 [B, D / 2], of the rotary angles.
        position_ids: int64 [B], -1 for no token.
        state: float32 [B, G, D, D].
        window_key: [B, G, W, D], rotated. window_value: [B, G, W, D].
        output: [B, G * R * D].
        next_state: output, float32 [B, G, D, D]; may be ``state``.
        next_window_key, next_window_value: outputs, [B, G, W, D]; the window's own buffers if RING.
        query_stride, key_stride, value_stride: elements between the rows of consecutive sequences.
        gate_normalizer: divides the log gates.
        recurrent_weight: weight of the recurrence in the output.
        MIXER: number of the mixer in ``plans.MIXER_NUMBERS``.
        G: key/value heads. R: query heads per key/value head. D: head size. W: keys in the window.
        BLOCK_R, BLOCK_D, BLOCK_W: R, D and W rounded up to powers of two, at least 8, 16 and 16.
        BLOCK_V: value columns per program.
        RING: update the window in place; position p has row p % W. Otherwise rows are oldest first and move to the next
            buffers. The programs of a head cannot synchronize, so they cannot shift rows in place that all of them
            read. In a ring they replace one row that none of them reads.
        PRECISION: of float32 products: "ieee", "tf32x3" or "tf32".
        PDL: use programmatic dependent launch.
        READS_AHEAD: with PDL, read positions, state and window before the previous kernel has ended. Valid if that
            kernel writes none of them.
    """
    if not READS_AHEAD:
        wait_for_activations(PDL)
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + kv_head
    dims = tl.arange(0, BLOCK_D)[None, :]
    real_dims, real_columns = dims < D, columns < D
    position = tl.load(position_ids + sequence)
    is_token = position >= 0

    # Load the state's tile first: it depends on nothing and is in the slowest memory.
    tile = head * D * D + tl.arange(0, BLOCK_D)[:, None] * D + columns
    real_tile = (tl.arange(0, BLOCK_D)[:, None] < D) & real_columns
    memory = tl.load(state + tile, mask=real_tile, other=0.0)

    # The new token replaces row ``new``, the oldest key's row once the window is full; -1 without a token.
    rows = tl.arange(0, BLOCK_W)[:, None]
    new = position % W if RING else tl.where(position < W, position, 0)
    new = tl.where(is_token, new, -1).to(tl.int32)
    # Without a token the number of filled rows is unknown: copy all rows unchanged.
    held = tl.where(is_token, tl.minimum(position, W), W).to(tl.int32)
    is_kept = (rows < held) & (rows != new)
    buffer = head * W * D + rows * D
    keys = tl.load(window_key + buffer + dims, mask=is_kept & real_dims, other=0.0)
    values = tl.load(window_value + buffer + columns, mask=is_kept & real_columns, other=0.0)

    # Projections, rotary embedding
    if READS_AHEAD:
        wait_for_activations(PDL)
    key_row = key + sequence * key_stride + kv_head * D
    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    angle = sequence * (D // 2) + dims % (D // 2)
    cosine = tl.load(cos + angle, mask=real_dims, other=0.0)
    sine = tl.load(sin + angle, mask=real_dims, other=0.0)
    new_key = tl.load(key_row + dims, mask=real_dims, other=0.0)
    new_partner = tl.load(key_row + partners, mask=real_dims, other=0.0)
    new_value = tl.load(value + sequence * value_stride + kv_head * D + columns, mask=real_columns, other=0.0)
    members = tl.arange(0, BLOCK_R)[:, None]
    heads = sequence * query_stride + (kv_head * R + members) * D
    real_heads = (members < R) & real_dims
    queries = tl.load(query + heads + dims, mask=real_heads, other=0.0)
    query_partners = tl.load(query + heads + partners, mask=real_heads, other=0.0)

    rotated_key = rotated(new_key, new_partner, cosine, sine, dims, D).to(keys.dtype)
    rotated_query = rotated(queries, query_partners, cosine, sine, dims, D).to(keys.dtype)

    # Recurrence: S = diag(exp g) S + k v^T, o = S^T q
    wide_key = new_key.to(tl.float32)
    decay = tl.where(is_token, tl.exp(log_gates(wide_key, real_dims, gate_normalizer)), 1.0)
    written = tl.where(is_token, key_features(wide_key, real_dims, MIXER), 0.0)
    # Select instead of multiplying by 0: padding may hold NaN.
    added = tl.where(is_token, new_value, 0.0).to(tl.float32)
    memory = tl.trans(decay) * memory + tl.trans(written) * added
    tl.store(next_state + tile, memory, mask=real_tile)
    features = softmax_rows(queries.to(tl.float32), real_dims)
    # Heads are the last axis of every product: tensor cores need 8 of them there, but 16 on the first axis.
    read = tl.dot(tl.trans(memory), tl.trans(features), input_precision=PRECISION)

    # Window: softmax(q . k / sqrt(D)) over rows in any order
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
