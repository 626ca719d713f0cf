"""Kernels between projections and the other gradient kernels: features and rotated rows, and back to queries and keys.

``chunkwise.prepare_kernel`` computes the same for keys. The gradients in between are those of the recurrence
(``chunkwise_backward``) and of the window (``window_backward``).
"""

import triton
import triton.language as tl

from liger_export.kernels.features import GLA, GSA, rotated, softmax_gradient, softmax_rows
from liger_export.kernels.plans import BLOCK

__all__ = ["finish_keys_kernel", "finish_queries_kernel", "prepare_queries_kernel", "unrotated"]

_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def prepare_queries_kernel(
    query,
    scores,
    cos,
    sin,
    counts,
    query_features,
    rotated_queries,
    query_batch_stride,
    query_stride,
    score_batch_stride,
    score_stride,
    length,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute query features and rotated queries for the other kernels. Grid (padded_length / 16, G * R, B).

    Args:
        query: [B, T, G * R * D].
        scores: [B, T, G * R * D], whose softmax the query features are: for gsa from ``slots``, otherwise the queries.
        cos, sin: float32 [B, T, D / 2].
        counts: int32 [B], tokens of this call, without padding.
        query_features: output, [B, G * R, padded_length, D].
        rotated_queries: output, [B, G * R, padded_length, D].
        query_batch_stride and the other strides: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: head size. BLOCK_D: D rounded up to a power of two.
    """
    block, query_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = block * _BLOCK + tl.arange(0, _BLOCK)[:, None]
    is_token = tokens < tl.load(counts + sequence)
    real = is_token & (dims < D)
    query_row = query + sequence * query_batch_stride + tokens * query_stride + query_head * D
    queries = tl.load(query_row + dims, mask=real, other=0.0)
    score_row = scores + sequence * score_batch_stride + tokens * score_stride + query_head * D
    own_scores = tl.load(score_row + dims, mask=real, other=0.0).to(tl.float32)
    features = tl.where(is_token, softmax_rows(own_scores, dims < D), 0.0)
    here = ((sequence * G * R + query_head) * padded_length + tokens) * D + dims
    tl.store(query_features + here, features.to(query_features.dtype.element_ty), mask=dims < D)

    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    cosine = tl.load(cos + angles, mask=real, other=0.0)
    sine = tl.load(sin + angles, mask=real, other=0.0)
    turned = rotated(queries, tl.load(query_row + partners, mask=real, other=0.0), cosine, sine, dims, D)
    tl.store(rotated_queries + here, turned.to(rotated_queries.dtype.element_ty), mask=dims < D)


@triton.jit
def unrotated(turned, tokens, real, angles, cos, sin, dims, D: tl.constexpr):
    """Gradient of rows from the gradient of the rotated rows [.., D] at ``turned``, which is the inverse rotation."""
    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    cosine = tl.load(cos + angles, mask=real, other=0.0)
    sine = tl.load(sin + angles, mask=real, other=0.0)
    rows = tl.load(turned + tokens * D + dims, mask=real, other=0.0)
    return rotated(rows, tl.load(turned + tokens * D + partners, mask=real, other=0.0), cosine, -sine, dims, D)


@triton.jit
def finish_queries_kernel(
    cos,
    sin,
    counts,
    query_features,
    into_queries,
    rotated_query_gradient,
    query_gradient,
    length,
    padded_length,
    recurrent_weight,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the gradients of queries from those of their features, with the window's. Grid (ceil(T / 16), G * R, B).

    Args:
        cos, sin: float32 [B, T, D / 2].
        counts: int32 [B], tokens of this call, without padding.
        query_features: from ``prepare_queries_kernel``. into_queries: from ``pair_gradients_kernel``.
        rotated_query_gradient: from ``window_backward``.
        query_gradient: output, [B, T, G * R * D].
        length: T. padded_length: T rounded up to a multiple of 64.
        recurrent_weight: weight of the recurrence.
        G: key/value heads. R: query heads per key/value head. D: head size. BLOCK_D: D rounded up to a power of two.
    """
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)[:, None]
    real = (tokens < tl.load(counts + sequence)) & (dims < D)
    head_rows = (sequence * G * R + query_head) * padded_length * D
    features = tl.load(query_features + head_rows + tokens * D + dims, mask=real, other=0.0).to(tl.float32)
    gradient = tl.load(into_queries + head_rows + tokens * D + dims, mask=real, other=0.0)
    gradient = softmax_gradient(features, gradient)
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    windowed = unrotated(rotated_query_gradient + head_rows, tokens, real, angles, cos, sin, dims, D)
    target = query_gradient + (sequence * length + tokens) * (G * R * D) + query_head * D + dims
    result = (recurrent_weight * gradient + windowed).to(query_gradient.dtype.element_ty)
    tl.store(target, result, mask=(tokens < length) & (dims < D))


@triton.jit
def finish_keys_kernel(
    key,
    cos,
    sin,
    counts,
    features,
    into_keys,
    into_gates,
    rotated_key_gradient,
    key_gradient,
    key_batch_stride,
    key_stride,
    length,
    padded_length,
    gate_normalizer,
    recurrent_weight,
    MIXER: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the gradients of keys from those of features and gates, with the window's. Grid (ceil(T / 16), G, B).

    Args:
        key: [B, T, G * D].
        cos, sin: float32 [B, T, D / 2].
        counts: int32 [B], tokens of this call, without padding.
        features: from ``chunkwise.prepare_kernel``. into_keys, into_gates: from ``pair_gradients_kernel``.
        rotated_key_gradient: from ``window_backward``.
        key_gradient: output, [B, T, G * D]; for gsa float32 [B, G, padded_length, D], without what goes through slots.
        key_batch_stride, key_stride: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        gate_normalizer: divides the log gates.
        recurrent_weight: weight of the recurrence.
        MIXER: number of the mixer in ``plans.MIXER_NUMBERS``.
        G: key/value heads. R: query heads per key/value head. D: head size. BLOCK_D: D rounded up to a power of two.
    """
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + kv_head
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)[:, None]
    real = (tokens < tl.load(counts + sequence)) & (dims < D)
    feature_gradient = tl.zeros([_BLOCK, BLOCK_D], tl.float32)
    gate_gradient = tl.zeros([_BLOCK, BLOCK_D], tl.float32)
    for member in range(R):
        own = ((head * R + member) * padded_length + tokens) * D + dims
        feature_gradient += tl.load(into_keys + own, mask=real, other=0.0)
        gate_gradient += tl.load(into_gates + own, mask=real, other=0.0)
    rows = key + sequence * key_batch_stride + tokens * key_stride + kv_head * D
    keys = tl.load(rows + dims, mask=real, other=0.0).to(tl.float32)
    closed = 1 / (1 + tl.exp(keys))
    if MIXER == GLA:
        written = tl.load(features + (head * padded_length + tokens) * D + dims, mask=real, other=0.0)
        gradient = softmax_gradient(written, feature_gradient)
    elif MIXER == GSA:
        written = tl.load(features + (head * padded_length + tokens) * D + dims, mask=real, other=0.0)
        gate_gradient += (written - 1) * feature_gradient
        gradient = tl.zeros([_BLOCK, BLOCK_D], tl.float32)
    else:
        gradient = -closed / (1 + tl.exp(-keys)) * feature_gradient
    gradient += gate_gradient * closed / gate_normalizer
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    turned = rotated_key_gradient + head * padded_length * D
    windowed = unrotated(turned, tokens, real, angles, cos, sin, dims, D)
    if MIXER == GSA:
        target = key_gradient + (head * padded_length + tokens) * D + dims
    else:
        target = key_gradient + (sequence * length + tokens) * (G * D) + kv_head * D + dims
    result = tl.where(real, recurrent_weight * gradient + windowed, 0.0)
    tl.store(target, result.to(key_gradient.dtype.element_ty), mask=(tokens < length) & (dims < D))
