"""Gradients of window attention: of the rotated queries, then of the rotated keys and the values.

Scores are computed again, so that training keeps nothing of the forward pass. The past window gets no gradient.
"""

import triton
import triton.language as tl

from liger_export.kernels.window import sees, span_rows

__all__ = ["window_key_gradient_kernel", "window_query_gradient_kernel"]


@triton.jit
def window_query_gradient_kernel(
    value,
    output_gradient,
    rotated_queries,
    rotated_keys,
    position_ids,
    counts,
    window_key,
    window_value,
    rotated_query_gradient,
    log_sums,
    means,
    value_batch_stride,
    value_stride,
    gradient_batch_stride,
    gradient_stride,
    length,
    padded_length,
    recurrent_weight,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradient of rotated queries, and each query's two sums. Grid (ceil(T / BLOCK_M), G * R, B).

    Args:
        value: [B, T, G * D]. output_gradient: [B, T, G * R * D].
        rotated_queries: [B, G * R, padded_length, D]. rotated_keys: [B, G, padded_length, D].
        position_ids: int64 [B, T]. counts: int32 [B], tokens of this call, without padding.
        window_key, window_value: [B, G, W, D], before the first token.
        rotated_query_gradient: output, float32 [B, G * R, padded_length, D].
        log_sums: output, float32 [B, G * R, padded_length], the log of the sum of exponentials.
        means: output, float32 [B, G * R, padded_length], the weighted mean of the weights' gradients.
        value_batch_stride, value_stride, gradient_batch_stride, gradient_stride: elements between sequences and tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        recurrent_weight: weight of the recurrence; the window has the rest.
        G: key/value heads. R: query heads per key/value head. D: head size. W: keys in the window.
        BLOCK_D: D rounded up to a power of two. BLOCK_M: queries per program. BLOCK_N: keys per iteration.
        PRECISION: of float32 products.
    """
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, row_head = sequence * G + query_head // R, sequence * G * R + query_head
    start = tl.program_id(0) * BLOCK_M
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = start + tl.arange(0, BLOCK_M)[:, None]
    count = tl.load(counts + sequence)
    is_token = tokens < count
    held = tl.minimum(tl.maximum(tl.load(position_ids + sequence * length), 0), W).to(tl.int32)
    positions = tl.load(position_ids + sequence * length + tokens, mask=is_token, other=0)
    real = is_token & (dims < D)
    here = (row_head * padded_length + tokens) * D + dims
    queries = tl.load(rotated_queries + here, mask=real, other=0.0)
    upstream = output_gradient + sequence * gradient_batch_stride + tokens * gradient_stride + query_head * D
    upstream = tl.load(upstream + dims, mask=real, other=0.0)

    largest = tl.full([BLOCK_M, 1], -1e30, tl.float32)  # finite, so that rows without a key so far do not become NaN
    total = tl.zeros([BLOCK_M, 1], tl.float32)
    mean = tl.zeros([BLOCK_M, 1], tl.float32)
    gradient = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    value_rows = value + sequence * value_batch_stride + (query_head // R) * D
    past_keys, past_values = window_key + head * W * D, window_value + head * W * D
    key_rows = rotated_keys + head * padded_length * D
    for offset in range(0, W - 1 + BLOCK_M, BLOCK_N):
        others = start - (W - 1) + offset + tl.arange(0, BLOCK_N)[:, None]
        present = (others >= 0) & (others < count) & (dims < D)
        keys = tl.load(key_rows + others * D + dims, mask=present, other=0.0)
        keys = span_rows(past_keys, keys, others, held, dims, D, W)
        values = tl.load(value_rows + others * value_stride + dims, mask=present, other=0.0)
        values = span_rows(past_values, values, others, held, dims, D, W)
        visible = sees(tokens, positions, tl.trans(others), held, W) & is_token
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (D**-0.5)
        scores = tl.where(visible, scores, -1e30)
        weight_gradients = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        larger = tl.maximum(largest, tl.max(scores, axis=1)[:, None])
        kept = tl.exp(largest - larger)
        weights = tl.where(visible, tl.exp(scores - larger), 0.0)
        total = total * kept + tl.sum(weights, axis=1)[:, None]
        mean = mean * kept + tl.sum(weights * weight_gradients, axis=1)[:, None]
        largest = larger
    total = tl.where(is_token, total, 1.0)
    mean = mean / total
    log_sum = tl.where(is_token, largest + tl.log(total), 0.0)

    for offset in range(0, W - 1 + BLOCK_M, BLOCK_N):
        others = start - (W - 1) + offset + tl.arange(0, BLOCK_N)[:, None]
        present = (others >= 0) & (others < count) & (dims < D)
        keys = tl.load(key_rows + others * D + dims, mask=present, other=0.0)
        keys = span_rows(past_keys, keys, others, held, dims, D, W)
        values = tl.load(value_rows + others * value_stride + dims, mask=present, other=0.0)
        values = span_rows(past_values, values, others, held, dims, D, W)
        visible = sees(tokens, positions, tl.trans(others), held, W) & is_token
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (D**-0.5)
        weights = tl.exp(tl.where(visible, scores - log_sum, float("-inf")))
        weight_gradients = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        score_gradients = weights * (weight_gradients - mean) * (D**-0.5)
        gradient = tl.dot(score_gradients.to(keys.dtype), keys, gradient, input_precision=PRECISION)
    stored = tokens < padded_length
    tl.store(rotated_query_gradient + here, (1 - recurrent_weight) * gradient, mask=stored & (dims < D))
    tl.store(log_sums + row_head * padded_length + tokens, log_sum, mask=stored)
    tl.store(means + row_head * padded_length + tokens, mean, mask=stored)


@triton.jit
def window_key_gradient_kernel(
    value,
    output_gradient,
    rotated_queries,
    rotated_keys,
    log_sums,
    means,
    position_ids,
    counts,
    rotated_key_gradient,
    window_value_gradient,
    value_batch_stride,
    value_stride,
    gradient_batch_stride,
    gradient_stride,
    length,
    padded_length,
    recurrent_weight,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of rotated keys and of values. Grid (ceil(T / BLOCK_N), G, B).

    Args:
        value: [B, T, G * D]. output_gradient: [B, T, G * R * D].
        rotated_queries: [B, G * R, padded_length, D]. rotated_keys: [B, G, padded_length, D].
        log_sums, means: from ``window_query_gradient_kernel``.
        position_ids: int64 [B, T]. counts: int32 [B], tokens of this call, without padding.
        rotated_key_gradient, window_value_gradient: outputs, float32 [B, G, padded_length, D].
        value_batch_stride, value_stride, gradient_batch_stride, gradient_stride: elements between sequences and tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        recurrent_weight: weight of the recurrence; the window has the rest.
        G: key/value heads. R: query heads per key/value head. D: head size. W: keys in the window.
        BLOCK_D: D rounded up to a power of two. BLOCK_M: queries per iteration. BLOCK_N: keys per program.
        PRECISION: of float32 products.
    """
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + kv_head
    start = tl.program_id(0) * BLOCK_N
    dims = tl.arange(0, BLOCK_D)[None, :]
    own = start + tl.arange(0, BLOCK_N)[:, None]
    count = tl.load(counts + sequence)
    real = (own < count) & (dims < D)
    here = (head * padded_length + own) * D + dims
    keys = tl.load(rotated_keys + here, mask=real, other=0.0)
    values = value + sequence * value_batch_stride + own * value_stride + kv_head * D + dims
    values = tl.load(values, mask=real, other=0.0)
    key_tokens = tl.trans(own)
    key_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    value_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    span: tl.constexpr = (W - 1 + BLOCK_N + BLOCK_M - 1) // BLOCK_M
    for step in range(R * span):
        query_head = kv_head * R + step // span
        row_head = sequence * G * R + query_head
        tokens = start + (step % span) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        is_token = tokens < count
        queries = rotated_queries + (row_head * padded_length + tokens) * D + dims
        queries = tl.load(queries, mask=is_token & (dims < D), other=0.0)
        upstream = output_gradient + sequence * gradient_batch_stride + tokens * gradient_stride + query_head * D
        upstream = tl.load(upstream + dims, mask=is_token & (dims < D), other=0.0)
        log_sum = tl.load(log_sums + row_head * padded_length + tokens, mask=is_token, other=0.0)
        mean = tl.load(means + row_head * padded_length + tokens, mask=is_token, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (D**-0.5)
        positions = tl.load(position_ids + sequence * length + tokens, mask=is_token, other=0)
        visible = sees(tokens, positions, key_tokens, 0, W) & is_token
        weights = tl.exp(tl.where(visible, scores - log_sum, float("-inf")))
        value_gradient = tl.dot(
            tl.trans(weights).to(upstream.dtype), upstream, value_gradient, input_precision=PRECISION
        )
        weight_gradients = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        score_gradients = weights * (weight_gradients - mean) * (D**-0.5)
        key_gradient = tl.dot(
            tl.trans(score_gradients).to(queries.dtype), queries, key_gradient, input_precision=PRECISION
        )
    stored = (own < padded_length) & (dims < D)
    tl.store(rotated_key_gradient + here, (1 - recurrent_weight) * key_gradient, mask=stored)
    tl.store(window_value_gradient + here, (1 - recurrent_weight) * value_gradient, mask=stored)
