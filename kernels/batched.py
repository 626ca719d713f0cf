"""The step kernel for large batches: a program owns a whole head of the state, and each warp 32 of its columns.

A large batch has enough heads to fill a GPU, so a step is limited by memory bandwidth if nothing else is added. A tile
of state or window therefore goes from memory to the tensor cores through registers only: each lane loads exactly its
MMA fragment. Lane 4 n + k holds rows n and n + 8 of an MMA tile. Products sum over columns; of every eight of them, the
lane holds 2 k and 2 k + 1. Which window row or state column has number n is free, and so is the order of a sum: both
are chosen so that one load of 8 or 16 bytes brings elements of one lane only. Tiles are read with one axis per digit of
their indices, in the order in which Triton distributes an array over lanes (elements of a load, k, n, warps, the rest),
and then permuted into a matrix. Products have a leading axis of warps; each warp computes one matrix along it.

Small, near rows are loaded before large, distant tiles: this order spills no register. The window is prefetched into
the L2 cache while the token is prepared, and the first rows of the state during window attention. Prefetching more
would evict data before it is read.
"""

import triton
import triton.language as tl

from liger_export.kernels.dependent_launch import prefetch, wait_for_activations
from liger_export.kernels.features import key_features, log_gates, rotated, softmax_rows
from liger_export.kernels.plans import BUNDLE_NAMES

__all__ = ["batched_step_kernel"]


@triton.jit(repr=lambda _: BUNDLE_NAMES["batched_step_kernel"])
def batched_step_kernel(
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
    vectors,
    rotated_queries,
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
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
    RING: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token of B sequences, with D / 32 warps per program. Grid (G, B).

    Arguments as for ``step_kernel``, except:

    Args:
        vectors: workspace, float32 [B, G, R + 2, D]: query features, decays, and key features.
        rotated_queries: workspace, [B, G, R, D].
        next_state: output, float32 [B, G, D, D]; ``state`` itself if RING.
        D: head size, 64 or 128. R: at most 8. W: at most 64.
        BLOCK_R: R rounded up to a power of two. BLOCK_W: W rounded up to a power of two, at least D / 2.
        ROWS: rows of the state per iteration, a power of two from 8 to D / 2.
    """
    kv_head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = sequence * G + kv_head
    window, tile = head * W * D, head * D * D
    prefetch(window_key + window, W * D, BLOCK_W * D, PDL)
    wait_for_activations(PDL)
    position = tl.load(position_ids + sequence)
    is_token = position >= 0
    new_value = value + sequence * value_stride + kv_head * D
    next_key, next_value = next_window_key + window, next_window_value + window
    if RING:
        next_state = state  # a ring means that the state is in place too: one address fewer in registers
    vectors += head * (R + 2) * D
    rotated_queries += head * R * D

    new = (position % W if RING else tl.minimum(position, W - 1)) * D
    _prepare(
        query + sequence * query_stride + kv_head * R * D,
        key + sequence * key_stride + kv_head * D,
        new_value,
        cos + sequence * (D // 2),
        sin + sequence * (D // 2),
        vectors,
        rotated_queries,
        next_key + new,
        next_value + new,
        window_value + window,
        is_token,
        gate_normalizer,
        MIXER,
        R,
        D,
        W,
        BLOCK_R,
        BLOCK_W,
        PDL,
    )
    if not RING:
        _move_rows(window_key + window, next_key, position, D, W, BLOCK_W)
        _move_rows(window_value + window, next_value, position, D, W, BLOCK_W)
    # Some threads read below what others have written.
    tl.debug_barrier()
    filled = tl.minimum(position + 1, W).to(tl.int32)
    windowed = _attend(rotated_queries, next_key, next_value, filled, state + tile, R, D, W, BLOCK_W, ROWS, PDL)
    read = _recur(vectors, state + tile, next_state + tile, new_value, is_token, R, D, ROWS)

    mixed = recurrent_weight * read + (1 - recurrent_weight) * windowed
    mixed = tl.where(is_token, mixed, 0.0).to(output.dtype.element_ty)
    members = tl.arange(0, 8)[None, None, :]
    tl.store(output + (head * R + members) * D + _columns(D), mixed, mask=members < R)


@triton.jit
def _columns(D: tl.constexpr):
    """State columns in the rows of products [D / 32 warps, 32, 8 heads]."""
    warp, row = tl.arange(0, D // 32)[:, None, None], tl.arange(0, 32)[None, :, None]
    return warp * 32 + row % 8 * 4 + row // 8


@triton.jit
def _prepare(
    query,
    key,
    value,
    cos,
    sin,
    vectors,
    rotated_queries,
    next_key,
    next_value,
    window_value,
    is_token,
    gate_normalizer,
    MIXER: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute the token's vectors and store them for all warps, each of which reads them in its own order.

    Prefetches ``window_value``.
    """
    dims, members = tl.arange(0, D)[None, :], tl.arange(0, BLOCK_R)[:, None]
    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    real, real_heads = dims < D, (members < R) & (dims < D)
    cosine, sine = tl.load(cos + dims % (D // 2)), tl.load(sin + dims % (D // 2))
    queries = tl.load(query + members * D + dims, mask=real_heads, other=0.0)
    query_partners = tl.load(query + members * D + partners, mask=real_heads, other=0.0)
    keys, key_partners = tl.load(key + dims), tl.load(key + partners)
    values = tl.load(value + dims)
    prefetch(window_value, W * D, BLOCK_W * D, PDL)

    wide_key = keys.to(tl.float32)
    decay = tl.where(is_token, tl.exp(log_gates(wide_key, real, gate_normalizer)), 1.0)
    written = tl.where(is_token, key_features(wide_key, real, MIXER), 0.0)
    tl.store(vectors + members * D + dims, softmax_rows(queries.to(tl.float32), real), mask=real_heads)
    tl.store(vectors + R * D + dims, decay)
    tl.store(vectors + (R + 1) * D + dims, written)
    turned = rotated(queries, query_partners, cosine, sine, dims, D).to(keys.dtype)
    tl.store(rotated_queries + members * D + dims, turned, mask=real_heads)
    is_kept = dims < tl.where(is_token, D, 0)
    tl.store(next_key + dims, rotated(keys, key_partners, cosine, sine, dims, D).to(keys.dtype), mask=is_kept)
    tl.store(next_value + dims, values, mask=is_kept)


@triton.jit
def _move_rows(old, following, position, D: tl.constexpr, W: tl.constexpr, BLOCK_W: tl.constexpr):
    """Copy a window, oldest first, to the next buffer, one row up if it is full. Empty rows become 0."""
    row, dims = tl.arange(0, BLOCK_W)[:, None], tl.arange(0, D)[None, :]
    # Without a token the number of filled rows is unknown: copy all rows unchanged.
    filled = tl.where(position < 0, W, tl.minimum(position, W)).to(tl.int32)
    first = (position >= W).to(tl.int32)
    rows = tl.load(old + row * D + dims, mask=row < filled, other=0.0)
    is_moved = (row >= first) & (row < W) & (row != position)  # except the token's own row
    tl.store(following + (row - first) * D + dims, rows, mask=is_moved)


@triton.jit
def _attend(
    rotated_queries,
    window_key,
    window_value,
    filled,
    state,
    R: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Softmax attention over the rows of a window, including the token's. Returns [D / 32, 32, 8].

    Prefetches the first rows of ``state``.
    """
    WARPS: tl.constexpr = D // 32
    TILES: tl.constexpr = BLOCK_W // (16 * WARPS)  # of 16 keys, per warp

    # Queries as [dimensions, heads], one copy per warp.
    part = tl.arange(0, D // 32)[:, None, None, None, None]
    warp = tl.arange(0, WARPS)[None, :, None, None, None]
    member = tl.arange(0, 8)[None, None, :, None, None]
    k = tl.arange(0, 4)[None, None, None, :, None]
    each = tl.arange(0, 8)[None, None, None, None, :]
    at = rotated_queries + member * D + part * 32 + k * 8 + each + warp * 0
    queries = tl.reshape(tl.load(at, mask=member < R, other=0.0), [D // 32, WARPS, 8, 4, 2, 2, 2])
    queries = tl.reshape(tl.permute(queries, (1, 0, 4, 5, 3, 6, 2)), [WARPS, D, 8])

    # Keys as [rows, dimensions], 8 dimensions per load: three binary digits, two of them inside an MMA tile.
    part = tl.arange(0, D // 32)[:, None, None, None, None, None]
    tile = tl.arange(0, 2 * TILES)[None, :, None, None, None, None]
    warp = tl.arange(0, WARPS)[None, None, :, None, None, None]
    n = tl.arange(0, 8)[None, None, None, :, None, None]
    k = tl.arange(0, 4)[None, None, None, None, :, None]
    each = tl.arange(0, 8)[None, None, None, None, None, :]
    row = (warp * 2 * TILES + tile) * 8 + n
    dims = part * 32 + k * 8 + each
    keys = tl.load(window_key + row * D + dims, mask=row < W, other=0.0)
    keys = tl.reshape(keys, [D // 32, 2 * TILES, WARPS, 8, 4, 2, 2, 2])
    keys = tl.reshape(tl.permute(keys, (2, 1, 3, 0, 5, 6, 4, 7)), [WARPS, 16 * TILES, D])

    # Values as [columns, rows], 4 columns per load.
    eight = tl.arange(0, BLOCK_W // 8)[:, None, None, None, None, None]
    pair = tl.arange(0, 2)[None, :, None, None, None, None]
    each = tl.arange(0, 4)[None, None, None, None, None, :]
    value_row = eight * 8 + k * 2 + pair
    values = tl.load(window_value + value_row * D + (warp * 8 + n) * 4 + each, mask=value_row < W, other=0.0)

    prefetch(state, 2 * ROWS * D, 2 * ROWS * D, PDL)
    scores = tl.reshape(tl.dot(keys, queries), [BLOCK_W, 8]) * (D**-0.5)
    scores = tl.where(tl.arange(0, BLOCK_W)[:, None] < filled, scores, float("-inf"))
    # Every warp needs the scores of all keys: the only exchange between warps.
    scores = tl.broadcast_to(scores[None], [WARPS, BLOCK_W, 8])
    powers = tl.exp(scores - tl.max(scores, axis=1)[:, None, :])
    values = tl.where(value_row < filled, values, 0.0)
    values = tl.reshape(values, [BLOCK_W // 8, 2, WARPS, 8, 4, 4])
    values = tl.reshape(tl.permute(values, (2, 5, 3, 0, 4, 1)), [WARPS, 32, BLOCK_W])
    return tl.dot(values, powers.to(values.dtype)) / tl.sum(powers, axis=1)[:, None, :]


@triton.jit
def _recur(vectors, state, next_state, value, is_token, R: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """S = diag(exp g) S + k v^T, o = S^T q, ROWS rows per iteration, loaded two ahead. Returns [D / 32, 32, 8]."""
    WARPS: tl.constexpr = D // 32
    eight = tl.arange(0, ROWS // 8)[:, None, None, None, None, None]
    pair = tl.arange(0, 2)[None, :, None, None, None, None]
    warp = tl.arange(0, WARPS)[None, None, :, None, None, None]
    n = tl.arange(0, 8)[None, None, None, :, None, None]
    k = tl.arange(0, 4)[None, None, None, None, :, None]
    each = tl.arange(0, 4)[None, None, None, None, None, :]
    row, column = eight * 8 + k * 2 + pair, (warp * 8 + n) * 4 + each
    tile = row * D + column
    # Select instead of multiplying by 0: padding may hold NaN.
    added = tl.where(is_token, tl.load(value + column), 0.0).to(tl.float32)

    # Features as [rows, heads], one copy per warp.
    f_eight = tl.arange(0, ROWS // 8)[:, None, None, None, None]
    f_warp = tl.arange(0, WARPS)[None, :, None, None, None]
    member = tl.arange(0, 8)[None, None, :, None, None]
    f_k = tl.arange(0, 4)[None, None, None, :, None]
    f_pair = tl.arange(0, 2)[None, None, None, None, :]
    feature = vectors + member * D + f_eight * 8 + f_k * 2 + f_pair + f_warp * 0
    next_decay, next_written = tl.load(vectors + R * D + row), tl.load(vectors + (R + 1) * D + row)
    next_features = tl.load(feature, mask=member < R, other=0.0)
    memory, ahead = tl.load(state + tile), tl.load(state + tile + ROWS * D)
    read = tl.zeros([WARPS, 32, 8], tl.float32)
    for start in tl.static_range(0, D, ROWS):
        decay, written, features, further = next_decay, next_written, next_features, ahead
        if start + 2 * ROWS < D:
            further = tl.load(state + tile + (start + 2 * ROWS) * D)
        if start + ROWS < D:
            next_decay = tl.load(vectors + R * D + start + ROWS + row)
            next_written = tl.load(vectors + (R + 1) * D + start + ROWS + row)
            next_features = tl.load(feature + start + ROWS, mask=member < R, other=0.0)
        memory = decay * memory + written * added
        tl.store(next_state + tile + start * D, memory)
        columns = tl.reshape(tl.permute(memory, (2, 5, 3, 0, 4, 1)), [WARPS, 32, ROWS])
        heads = tl.reshape(tl.permute(features, (1, 0, 3, 4, 2)), [WARPS, ROWS, 8])
        read = tl.dot(columns, heads, acc=read, input_precision="tf32")
        memory, ahead = ahead, further
    return read
