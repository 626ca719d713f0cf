"""Gradients of the recurrence: of queries, keys and values, from the gradient of a layer's output.

For S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, read as o_t = S_t^T q_t, let U_t be the gradient of S_t through later
tokens. Both matrices are computed again, S before each block of 16 tokens and U after it. Every pair of a query and an
earlier key adds to the gradients of

- the query, through S if the key is before the block, otherwise pair by pair;
- the key and its value, through U if the query is after the block, otherwise pair by pair;
- each gate between them: these four cases are added up one by one.

As in ``chunkwise``, every exponent is a sum of the gates between two tokens, and no gradient is a difference of sums:
the usual reverse cumulative sum of q dq - k dk loses all digits where gates are strong.
"""

import triton
import triton.language as tl

from liger_export.kernels.features import GLA, rotated, softmax_rows
from liger_export.kernels.plans import BLOCK

__all__ = ["gradient_kernel", "prepare_queries_kernel", "state_gradients_kernel", "states_kernel"]

_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def prepare_queries_kernel(
    query,
    cos,
    sin,
    counts,
    gates,
    decayed_queries,
    rotated_queries,
    query_batch_stride,
    query_stride,
    length,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute decayed and rotated queries for the other kernels. Grid (padded_length / 16, G * R, B).

    Args:
        query: [B, T, G * R * D].
        cos, sin: float32 [B, T, D / 2].
        counts: int32 [B], tokens of this call, without padding.
        gates: from ``chunkwise.prepare_kernel``.
        decayed_queries: output, [B, G * R, padded_length, D], query features decayed since the start of their block.
        rotated_queries: output, [B, G * R, padded_length, D].
        query_batch_stride, query_stride: elements between sequences and between tokens.
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
    shared = (sequence * G + query_head // R) * padded_length + tokens
    decay = tl.exp(tl.cumsum(tl.load(gates + shared * D + dims, mask=dims < D, other=0.0), axis=0))
    features = tl.where(is_token, softmax_rows(queries.to(tl.float32), dims < D), 0.0)
    here = ((sequence * G * R + query_head) * padded_length + tokens) * D + dims
    tl.store(decayed_queries + here, (features * decay).to(decayed_queries.dtype.element_ty), mask=dims < D)

    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    cosine = tl.load(cos + angles, mask=real, other=0.0)
    sine = tl.load(sin + angles, mask=real, other=0.0)
    turned = rotated(queries, tl.load(query_row + partners, mask=real, other=0.0), cosine, sine, dims, D)
    tl.store(rotated_queries + here, turned.to(rotated_queries.dtype.element_ty), mask=dims < D)


@triton.jit
def states_kernel(
    value,
    decayed_keys,
    block_gates,
    counts,
    state,
    entering,
    value_batch_stride,
    value_stride,
    padded_length,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute S before each block. Grid (ceil(D / BLOCK_K) * ceil(D / BLOCK_V), G, B).

    Args:
        value: [B, T, G * D].
        decayed_keys, block_gates: from ``chunkwise.prepare_kernel``.
        counts: int32 [B], tokens of this call, without padding.
        state: float32 [B, G, D, D], before the first token.
        entering: output, float32 [B, G, padded_length / 16, D, D].
        value_batch_stride, value_stride: elements between sequences and between tokens.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. D: head size. BLOCK_K, BLOCK_V: rows and columns of the state per program.
        PRECISION: of float32 products.
    """
    parts: tl.constexpr = tl.cdiv(D, BLOCK_V)
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    rows = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    columns = (tl.program_id(0) % parts) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    head, count = sequence * G + kv_head, tl.load(counts + sequence)
    tile, real = rows * D + columns, (rows < D) & (columns < D)
    memory = tl.load(state + head * D * D + tile, mask=real, other=0.0)
    blocks = padded_length // _BLOCK
    for block in range(blocks):
        tl.store(entering + (head * blocks + block) * D * D + tile, memory, mask=real)
        tokens = block * _BLOCK + tl.arange(0, _BLOCK)[:, None]
        values = value + sequence * value_batch_stride + tokens * value_stride + kv_head * D + columns
        values = tl.load(values, mask=(tokens < count) & (columns < D), other=0.0)
        keys = tl.load(decayed_keys + (head * padded_length + tokens) * D + dims, mask=dims < D, other=0.0)
        decay = tl.exp(tl.load(block_gates + (head * blocks + block) * D + rows, mask=rows < D, other=0.0))
        memory = tl.dot(tl.trans(keys), values, decay * memory, input_precision=PRECISION)


@triton.jit
def state_gradients_kernel(
    output_gradient,
    decayed_queries,
    block_gates,
    counts,
    leaving,
    gradient_batch_stride,
    gradient_stride,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute U after each block, from the last to the first. Grid (ceil(D / BLOCK_K) * ceil(D / BLOCK_V), G, B).

    Args:
        output_gradient: [B, T, G * R * D].
        decayed_queries: from ``prepare_queries_kernel``. block_gates: from ``chunkwise.prepare_kernel``.
        counts: int32 [B], tokens of this call, without padding.
        leaving: output, float32 [B, G, padded_length / 16, D, D].
        gradient_batch_stride, gradient_stride: elements between sequences and between tokens.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: head size. HEADS: query heads per iteration.
        BLOCK_K, BLOCK_V: rows and columns of the state per program.
        PRECISION: of float32 products.
    """
    parts: tl.constexpr = tl.cdiv(D, BLOCK_V)
    groups: tl.constexpr = tl.cdiv(R, HEADS)
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    rows = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    columns = (tl.program_id(0) % parts) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    head, count = sequence * G + kv_head, tl.load(counts + sequence)
    tile, real = rows * D + columns, (rows < D) & (columns < D)
    blocks = padded_length // _BLOCK
    each = tl.arange(0, HEADS * _BLOCK)[:, None]
    memory = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    for step in range(blocks * groups):
        block, first = blocks - 1 - step // groups, step % groups * HEADS
        is_first = first == 0
        tl.store(leaving + (head * blocks + block) * D * D + tile, memory, mask=real & is_first)
        members, tokens = first + each // _BLOCK, block * _BLOCK + each % _BLOCK
        is_row = (tokens < count) & (members < R)
        upstream = output_gradient + sequence * gradient_batch_stride + tokens * gradient_stride
        upstream = upstream + (kv_head * R + members) * D + columns
        upstream = tl.load(upstream, mask=is_row & (columns < D), other=0.0)
        queries = decayed_queries + ((head * R + members) * padded_length + tokens) * D + dims
        queries = tl.load(queries, mask=is_row & (dims < D), other=0.0)
        sums = tl.load(block_gates + (head * blocks + block) * D + rows, mask=(rows < D) & is_first, other=0.0)
        memory = tl.dot(tl.trans(queries), upstream, tl.exp(sums) * memory, input_precision=PRECISION)


@triton.jit
def _unrotated(turned, tokens, real, angles, cos, sin, dims, D: tl.constexpr):
    """Gradient of rows from the gradient of the rotated rows [.., D] at ``turned``, which is the inverse rotation."""
    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    cosine = tl.load(cos + angles, mask=real, other=0.0)
    sine = tl.load(sin + angles, mask=real, other=0.0)
    rows = tl.load(turned + tokens * D + dims, mask=real, other=0.0)
    return rotated(rows, tl.load(turned + tokens * D + partners, mask=real, other=0.0), cosine, -sine, dims, D)


@triton.jit
def gradient_kernel(
    query,
    key,
    value,
    output_gradient,
    cos,
    sin,
    counts,
    features,
    gates,
    decayed_keys,
    block_gates,
    entering,
    leaving,
    rotated_query_gradient,
    rotated_key_gradient,
    window_value_gradient,
    query_gradient,
    key_gradient,
    value_gradient,
    query_batch_stride,
    query_stride,
    key_batch_stride,
    key_stride,
    value_batch_stride,
    value_stride,
    gradient_batch_stride,
    gradient_stride,
    length,
    padded_length,
    gate_normalizer,
    recurrent_weight,
    MIXER: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of a block's projections, with those of the window. Grid (ceil(T / 16), G, B).

    Args:
        query: [B, T, G * R * D]. key, value: [B, T, G * D]. output_gradient: [B, T, G * R * D].
        cos, sin: float32 [B, T, D / 2].
        counts: int32 [B], tokens of this call, without padding.
        features, gates, decayed_keys, block_gates: from ``chunkwise.prepare_kernel``.
        entering: from ``states_kernel``. leaving: from ``state_gradients_kernel``.
        rotated_query_gradient, rotated_key_gradient, window_value_gradient: from ``window_backward``.
        query_gradient: output, [B, T, G * R * D]. key_gradient, value_gradient: outputs, [B, T, G * D].
        query_batch_stride and the other strides: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        gate_normalizer: divides the log gates.
        recurrent_weight: weight of the recurrence.
        MIXER: number of the mixer in ``plans.MIXER_NUMBERS``.
        G: key/value heads. R: query heads per key/value head. D: head size. HEADS: query heads per iteration.
        BLOCK_D: D rounded up to a power of two. BLOCK_V: rows or columns of a state per iteration.
        PRECISION: of float32 products.
    """
    block, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + kv_head
    dims = tl.arange(0, BLOCK_D)[None, :]
    state_rows = tl.arange(0, BLOCK_D)[:, None]
    to = tl.arange(0, _BLOCK)[:, None]
    tokens = block * _BLOCK + to
    count = tl.load(counts + sequence)
    is_token = tokens < count
    real = is_token & (dims < D)
    block_rows = (head * padded_length + block * _BLOCK) * D
    value_rows = value + sequence * value_batch_stride + tokens * value_stride + kv_head * D
    values = tl.load(value_rows + dims, mask=real, other=0.0)
    own_features = tl.load(features + block_rows + to * D + dims, mask=dims < D, other=0.0)
    own_gates = tl.load(gates + block_rows + to * D + dims, mask=dims < D, other=0.0)
    later_gates = tl.load(gates + block_rows + (to + 1) * D + dims, mask=(to < _BLOCK - 1) & (dims < D), other=0.0)

    # Keys of this block with later queries, and earlier keys with later queries
    tile = (head * (padded_length // _BLOCK) + block) * D * D
    into_keys = tl.zeros([_BLOCK, BLOCK_D], tl.float32)
    into_values = tl.zeros([_BLOCK, BLOCK_D], tl.float32)
    through = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, D, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)[None, :]
        inside = (state_rows < D) & (columns < D)
        before = tl.load(entering + tile + state_rows * D + columns, mask=inside, other=0.0)
        after = tl.load(leaving + tile + state_rows * D + columns, mask=inside, other=0.0)
        part = tl.load(value_rows + columns, mask=is_token & (columns < D), other=0.0).to(tl.float32)
        into_keys = tl.dot(part, tl.trans(after), into_keys, input_precision=PRECISION)
        through += tl.sum(before * after, axis=1)
        slots = start + tl.arange(0, BLOCK_V)[:, None]
        after = tl.load(leaving + tile + slots * D + dims, mask=(slots < D) & (dims < D), other=0.0)
        part = tl.load(decayed_keys + block_rows + to * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        into_values = tl.dot(part, after, into_values, input_precision=PRECISION)
    into_keys = into_keys * tl.exp(tl.cumsum(later_gates, axis=0, reverse=True))
    sums = tl.load(block_gates + (head * (padded_length // _BLOCK) + block) * D + dims, mask=dims < D, other=0.0)
    into_gates = tl.zeros([_BLOCK, BLOCK_D], tl.float32) + tl.exp(sums) * through[None, :]
    written = own_features * into_keys
    for at in range(_BLOCK - 1):
        from_key = tl.sum(tl.where(to == at, written, 0.0), axis=0)[None, :]
        into_gates += tl.where(to > at, from_key, 0.0)

    decay = tl.exp(tl.cumsum(own_gates, axis=0))
    from_keys = tl.arange(0, _BLOCK)[None, None, :]
    rows = tl.arange(0, HEADS * _BLOCK)[:, None]
    row_tokens = block * _BLOCK + rows % _BLOCK
    for first in range(0, R, HEADS):
        members = first + rows // _BLOCK
        is_row = (row_tokens < count) & (members < R)
        real_rows = is_row & (dims < D)
        query_rows = query + sequence * query_batch_stride + row_tokens * query_stride + (kv_head * R + members) * D
        queries = tl.load(query_rows + dims, mask=real_rows, other=0.0).to(tl.float32)
        queries = tl.where(is_row, softmax_rows(queries, dims < D), 0.0)
        by_head = tl.reshape(queries, [HEADS, _BLOCK, BLOCK_D])
        upstream_rows = output_gradient + sequence * gradient_batch_stride + row_tokens * gradient_stride
        upstream_rows = upstream_rows + (kv_head * R + members) * D

        # Queries of this block with earlier keys
        into_queries = tl.zeros([HEADS * _BLOCK, BLOCK_D], tl.float32)
        for start in range(0, D, BLOCK_V):
            columns = start + tl.arange(0, BLOCK_V)[None, :]
            part = tl.load(upstream_rows + columns, mask=is_row & (columns < D), other=0.0).to(tl.float32)
            inside = (state_rows < D) & (columns < D)
            before = tl.load(entering + tile + state_rows * D + columns, mask=inside, other=0.0)
            into_queries = tl.dot(part, tl.trans(before), into_queries, input_precision=PRECISION)
        into_heads = tl.reshape(into_queries, [HEADS, _BLOCK, BLOCK_D]) * decay[None, :, :]
        into_gates += tl.cumsum(tl.sum(by_head * into_heads, axis=0), axis=0, reverse=True)

        # Pairs within the block. The gates between accumulate as the key moves away from the queries.
        upstream = tl.load(upstream_rows + dims, mask=real_rows, other=0.0)
        into_scores = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        into_scores = tl.reshape(into_scores, [HEADS, _BLOCK, _BLOCK])
        scores = tl.zeros([HEADS, _BLOCK, _BLOCK], tl.float32)
        between = tl.zeros([_BLOCK, BLOCK_D], tl.float32)
        for back in range(_BLOCK):
            at = _BLOCK - 1 - back
            gate = tl.load(gates + block_rows + (at + 1) % _BLOCK * D + dims, mask=dims < D, other=0.0)
            between += tl.where(to > at, gate, 0.0)
            kept = tl.where(to >= at, tl.exp(between), 0.0)
            feature = tl.load(features + block_rows + at * D + dims, mask=dims < D, other=0.0)
            decayed = (feature * kept)[None, :, :]
            is_key = from_keys == at
            scores = tl.where(is_key, tl.sum(by_head * decayed, axis=2)[:, :, None], scores)
            into_score = tl.sum(tl.where(is_key, into_scores, 0.0), axis=2)[:, :, None]
            into_heads += into_score * decayed
            pulled = tl.sum(by_head * into_score, axis=0) * kept
            into_keys += tl.where(to == at, tl.sum(pulled, axis=0)[None, :], 0.0)
            into_gates += tl.where(to > at, tl.cumsum(pulled * feature, axis=0, reverse=True), 0.0)
        scores = tl.reshape(scores, [HEADS * _BLOCK, _BLOCK])
        into_values = tl.dot(tl.trans(scores).to(upstream.dtype), upstream, into_values, input_precision=PRECISION)

        into_queries = tl.reshape(into_heads, [HEADS * _BLOCK, BLOCK_D])
        into_queries = queries * (into_queries - tl.sum(queries * into_queries, axis=1)[:, None])
        turned = rotated_query_gradient + (head * R + members) * padded_length * D
        angles = (sequence * length + row_tokens) * (D // 2) + dims % (D // 2)
        windowed = _unrotated(turned, row_tokens, real_rows, angles, cos, sin, dims, D)
        target = query_gradient + (sequence * length + row_tokens) * (G * R * D) + (kv_head * R + members) * D + dims
        stored = (row_tokens < length) & (members < R) & (dims < D)
        result = recurrent_weight * into_queries + windowed
        tl.store(target, result.to(query_gradient.dtype.element_ty), mask=stored)

    keys = tl.load(key + sequence * key_batch_stride + tokens * key_stride + kv_head * D + dims, mask=real, other=0.0)
    keys = keys.to(tl.float32)
    closed = 1 / (1 + tl.exp(keys))
    if MIXER == GLA:
        into_keys = own_features * (into_keys - tl.sum(own_features * into_keys, axis=1)[:, None])
    else:
        into_keys = -closed / (1 + tl.exp(-keys)) * into_keys
    into_keys += into_gates * closed / gate_normalizer
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    windowed = _unrotated(rotated_key_gradient + head * padded_length * D, tokens, real, angles, cos, sin, dims, D)
    target = (sequence * length + tokens) * (G * D) + kv_head * D + dims
    stored = (tokens < length) & (dims < D)
    result = tl.where(real, recurrent_weight * into_keys + windowed, 0.0)
    tl.store(key_gradient + target, result.to(key_gradient.dtype.element_ty), mask=stored)
    windowed = tl.load(window_value_gradient + block_rows + to * D + dims, mask=real, other=0.0)
    result = tl.where(real, recurrent_weight * into_values + windowed, 0.0)
    tl.store(value_gradient + target, result.to(value_gradient.dtype.element_ty), mask=stored)
