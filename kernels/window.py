"""Window attention for several tokens: softmax over the last W keys, and the window that the next call reads.

The window holds rotated keys, and values, of the last W tokens, oldest first. These kernels complete ``chunkwise``.
"""

import triton
import triton.language as tl

from liger_export.kernels.features import rotated

__all__ = ["leave_kernel", "sees", "span_rows", "window_kernel"]


@triton.jit
def sees(tokens, positions, key_tokens, held, window: tl.constexpr):
    """Tell which keys [1, N] each token [M, 1] sees: itself and the window - 1 before it, in its document.

    Args:
        tokens: [M, 1], and key_tokens: [1, N], counted from the first token of this call.
        positions: [M, 1], of the tokens in their documents.
        held: number of filled rows in the past window.
        window: W.
    """
    in_window = (key_tokens <= tokens) & (key_tokens > tokens - window)
    return in_window & (key_tokens >= tokens - positions) & (key_tokens >= -held)


@triton.jit
def span_rows(past, present, tokens, held, dims, columns: tl.constexpr, window: tl.constexpr):
    """Combine rows of the past window with rows of this call. Token -1 is the newest token of the past.

    Args:
        past: pointer to a head's window [W, D].
        present: rows of this call, [N, BLOCK_D].
        tokens: [N, 1], counted from the first token of this call.
        held: number of filled rows in the past window, at most W.
        dims: [1, BLOCK_D].
        columns: D. window: W.
    """
    rows = held + tokens
    is_past = (tokens < 0) & (rows >= 0) & (dims < columns)
    old = tl.load(past + rows * columns + dims, mask=is_past, other=0.0)
    return tl.where(tokens < 0, old, present)


@triton.jit
def window_kernel(
    query,
    value,
    rotated_keys,
    cos,
    sin,
    position_ids,
    counts,
    window_key,
    window_value,
    output,
    query_batch_stride,
    query_stride,
    value_batch_stride,
    value_stride,
    length,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax attention over the last W keys, tile by tile along the band. Grid (ceil(T / BLOCK_M), G * R, B).

    Args:
        query: [B, T, G * R * D]. value: [B, T, G * D].
        rotated_keys: from ``chunkwise.prepare_kernel``.
        cos, sin: float32 [B, T, D / 2].
        position_ids: int64 [B, T]. counts: int32 [B], tokens of this call, without padding.
        window_key, window_value: [B, G, W, D], before the first token.
        output: [B, T, G * R * D].
        query_batch_stride, query_stride, value_batch_stride, value_stride: elements between sequences and tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: head size. W: keys in the window.
        BLOCK_D: D rounded up to a power of two. BLOCK_M: queries per program. BLOCK_N: keys per iteration.
        PRECISION: of float32 products: "ieee", "tf32x3" or "tf32".
    """
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + query_head // R
    start = tl.program_id(0) * BLOCK_M
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = start + tl.arange(0, BLOCK_M)[:, None]
    count = tl.load(counts + sequence)
    is_token = tokens < count
    held = tl.minimum(tl.maximum(tl.load(position_ids + sequence * length), 0), W).to(tl.int32)

    positions = tl.load(position_ids + sequence * length + tokens, mask=is_token, other=0)
    real = is_token & (dims < D)
    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    query_rows = query + sequence * query_batch_stride + tokens * query_stride + query_head * D
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    queries = tl.load(query_rows + dims, mask=real, other=0.0)
    partner_queries = tl.load(query_rows + partners, mask=real, other=0.0)
    cosine = tl.load(cos + angles, mask=real, other=0.0)
    sine = tl.load(sin + angles, mask=real, other=0.0)
    queries = rotated(queries, partner_queries, cosine, sine, dims, D).to(queries.dtype)

    largest = tl.full([BLOCK_M, 1], -1e30, tl.float32)  # finite, so that rows without a key so far do not become NaN
    total = tl.zeros([BLOCK_M, 1], tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    value_rows = value + sequence * value_batch_stride + (query_head // R) * D
    for offset in range(0, W - 1 + BLOCK_M, BLOCK_N):
        others = start - (W - 1) + offset + tl.arange(0, BLOCK_N)[:, None]
        present = (others >= 0) & (others < count) & (dims < D)
        keys = tl.load(rotated_keys + (head * padded_length + others) * D + dims, mask=present, other=0.0)
        keys = span_rows(window_key + head * W * D, keys, others, held, dims, D, W)
        values = tl.load(value_rows + others * value_stride + dims, mask=present, other=0.0)
        values = span_rows(window_value + head * W * D, values, others, held, dims, D, W)

        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (D**-0.5)
        key_tokens = tl.trans(others)
        visible = sees(tokens, positions, key_tokens, held, W)
        scores = tl.where(visible, scores, -1e30)
        larger = tl.maximum(largest, tl.max(scores, axis=1)[:, None])
        kept = tl.exp(largest - larger)
        weights = tl.where(visible, tl.exp(scores - larger), 0.0)
        total = total * kept + tl.sum(weights, axis=1)[:, None]
        weighted = tl.dot(weights.to(values.dtype), values, weighted * kept, input_precision=PRECISION)
        largest = larger
    mixed = tl.where(is_token, weighted / tl.where(is_token, total, 1.0), 0.0)
    output_rows = output + (sequence * length + tokens) * (G * R * D) + query_head * D
    tl.store(output_rows + dims, mixed.to(output.dtype.element_ty), mask=(tokens < length) & (dims < D))


@triton.jit
def leave_kernel(
    value,
    rotated_keys,
    position_ids,
    counts,
    window_key,
    window_value,
    next_window_key,
    next_window_value,
    value_batch_stride,
    value_stride,
    length,
    padded_length,
    G: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Write the window after the last token, oldest first. Grid (ceil(W / BLOCK_W), G, B).

    Args:
        value: [B, T, G * D].
        rotated_keys: from ``chunkwise.prepare_kernel``.
        position_ids: int64 [B, T]. counts: int32 [B], tokens of this call, without padding.
        window_key, window_value: [B, G, W, D], before the first token.
        next_window_key, next_window_value: outputs, [B, G, W, D], in other buffers.
        value_batch_stride, value_stride: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        G: key/value heads. D: head size. W: keys in the window.
        BLOCK_D: D rounded up to a power of two. BLOCK_W: rows per program.
    """
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + kv_head
    dims = tl.arange(0, BLOCK_D)[None, :]
    rows = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)[:, None]
    held = tl.minimum(tl.maximum(tl.load(position_ids + sequence * length), 0), W).to(tl.int32)
    count = tl.load(counts + sequence)
    last = tl.load(position_ids + sequence * length + tl.maximum(count - 1, 0))
    left = tl.where(count > 0, tl.minimum(last + 1, W).to(tl.int32), held)
    tokens = tl.where(rows < left, count - left + rows, -W - 1)  # empty rows read nothing
    present = (tokens >= 0) & (dims < D)
    target = head * W * D + rows * D + dims
    stored = (rows < W) & (dims < D)
    keys = tl.load(rotated_keys + (head * padded_length + tokens) * D + dims, mask=present, other=0.0)
    keys = span_rows(window_key + head * W * D, keys, tokens, held, dims, D, W)
    tl.store(next_window_key + target, keys, mask=stored)
    value_rows = value + sequence * value_batch_stride + kv_head * D
    values = tl.load(value_rows + tokens * value_stride + dims, mask=present, other=0.0)
    values = span_rows(window_value + head * W * D, values, tokens, held, dims, D, W)
    tl.store(next_window_value + target, values, mask=stored)
