"""The first pass of gated slot attention: scores of queries with slots of keys, and the gradients through them.

For K_t = diag(exp g_t) K_{t-1} + w_t k_t^T [D slots, D], the scores of a query are K_t q_t. The second pass is that of
gla, whose state holds the slots' values and whose query features are the softmax of the scores.

A pair of a query and an earlier key adds (q . k) sum_m c[m] exp(g between)[m] w[m] to the loss, where c is the gradient
of the scores. In the second pass it adds the same with other letters: the gradient of the output for q, a value for k
and the query features for c. So the kernels of ``chunkwise_backward`` compute the gradients of keys, writes and gates,
and the scores are what ``pair_gradients_kernel`` computes for query features. Pairs are split as there.
"""

import triton
import triton.language as tl

from liger_export.kernels.chunk_states import UP_TO, decays, selection, split
from liger_export.kernels.chunkwise import is_pair
from liger_export.kernels.features import finite, softmax_gradient
from liger_export.kernels.plans import BLOCK, CHUNK, HALVINGS
from liger_export.kernels.projection_backward import unrotated

__all__ = ["score_gradients_kernel", "slot_query_gradients_kernel", "slot_scores_kernel"]

_BLOCK = tl.constexpr(BLOCK)
_CHUNK = tl.constexpr(CHUNK)
_HALVINGS = tl.constexpr(HALVINGS)


@triton.jit
def slot_scores_kernel(
    query,
    key,
    features,
    gates,
    selections,
    counts,
    entering,
    scores,
    query_batch_stride,
    query_stride,
    key_batch_stride,
    key_stride,
    length,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the scores of a query head with its slots. Grid (chunks * ceil(D / BLOCK_K), G * R, B).

    Products have float32 operands: the softmax of the scores turns their errors into relative ones.

    Args:
        query: [B, T, G * R * D]. key: [B, T, G * D].
        features, gates: from ``chunkwise.prepare_kernel``.
        selections: of gates between tokens (``chunk_states``).
        counts: int32 [B], tokens of this call, without padding.
        entering: float32 [B, G, padded_length / 64, D, D], the slots' keys before each chunk.
        scores: output, float32 [B, T, G * R * D], zero at padding.
        query_batch_stride and the other strides: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: head size and slots.
        BLOCK_K: slots per program. BLOCK_V: columns of a slot per iteration.
        PRECISION: of float32 products.
    """
    tiles: tl.constexpr = tl.cdiv(D, BLOCK_K)
    chunk = tl.program_id(0) // tiles
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_head = query_head // R
    head = sequence * G + kv_head
    rows, columns = tl.arange(0, _CHUNK)[:, None], tl.arange(0, _CHUNK)[None, :]
    dims = tl.program_id(0) % tiles * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    first = chunk * _CHUNK
    is_token = first + rows < tl.load(counts + sequence)
    here = (head * padded_length + first) * D
    tile = rows * D + dims
    log_decays = finite(tl.load(gates + here + tile, mask=dims < D, other=0.0))
    high, low = split(log_decays, query.dtype.element_ty)
    written = tl.load(features + here + tile, mask=dims < D, other=0.0)

    # Products of queries and keys, and keys before the chunk
    query_rows = query + sequence * query_batch_stride + first * query_stride + query_head * D
    key_rows = key + sequence * key_batch_stride + first * key_stride + kv_head * D
    states = entering + (head * (padded_length // _CHUNK) + chunk) * D * D
    products = tl.zeros([_CHUNK, _CHUNK], tl.float32)
    read = tl.zeros([_CHUNK, BLOCK_K], tl.float32)
    for start in range(0, D, BLOCK_V):
        inner = start + tl.arange(0, BLOCK_V)[None, :]
        queries = tl.load(query_rows + rows * query_stride + inner, mask=is_token & (inner < D), other=0.0)
        keys = tl.load(key_rows + rows * key_stride + inner, mask=is_token & (inner < D), other=0.0)
        products = tl.dot(queries, tl.trans(keys), products, input_precision=PRECISION)
        along = start + tl.arange(0, BLOCK_V)[:, None]
        before = tl.load(states + dims * D + along, mask=(dims < D) & (along < D), other=0.0)
        read = tl.dot(queries.to(tl.float32), before, read, input_precision=PRECISION)
    read *= decays(selection(selections, UP_TO), high, low, PRECISION)

    # The query's own key, then the other keys of the chunk, by the segment at whose middle the pair is cut
    read += tl.sum(tl.where(rows == columns, products, 0.0), axis=1)[:, None] * written
    for shift in range(_HALVINGS):
        decay = decays(selection(selections, shift), high, low, PRECISION)
        cut = tl.where(is_pair(rows, columns, shift), products, 0.0)
        read += decay * tl.dot(cut, written * decay, input_precision=PRECISION)
    target = scores + (sequence * length + first) * (G * R * D) + query_head * D
    target += rows * (G * R * D) + dims
    tl.store(target, tl.where(is_token, read, 0.0), mask=(first + rows < length) & (dims < D))


@triton.jit
def score_gradients_kernel(
    counts,
    query_features,
    into_queries,
    score_gradient,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the gradients of scores from those of their softmax. Grid (padded_length / 16, G * R, B).

    Args:
        counts: int32 [B], tokens of this call, without padding.
        query_features: [B, G * R, padded_length, D], the softmax of the scores.
        into_queries: float32 [B, G * R, padded_length, D], the gradients of ``query_features``.
        score_gradient: output, float32 [B, G * R, padded_length, D], zero at padding.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: slots. BLOCK_D: D rounded up to a power of two.
    """
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)[:, None]
    real = (tokens < tl.load(counts + sequence)) & (dims < D)
    here = ((sequence * G * R + query_head) * padded_length + tokens) * D + dims
    features = tl.load(query_features + here, mask=real, other=0.0).to(tl.float32)
    gradient = tl.load(into_queries + here, mask=real, other=0.0)
    gradient = softmax_gradient(features, gradient)
    tl.store(score_gradient + here, gradient, mask=dims < D)


@triton.jit
def slot_query_gradients_kernel(
    key,
    cos,
    sin,
    score_gradient,
    products,
    gates,
    selections,
    counts,
    entering,
    rotated_query_gradient,
    query_gradient,
    key_batch_stride,
    key_stride,
    length,
    padded_length,
    recurrent_weight,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of queries, with the window's. Grid (chunks * ceil(D / BLOCK_V), G * R, B).

    Args:
        key: [B, T, G * D].
        cos, sin: float32 [B, T, D / 2].
        score_gradient: from ``score_gradients_kernel``. products: its products with what is written to the slots, from
            ``chunkwise_backward.pair_products_kernel``. gates: from ``chunkwise.prepare_kernel``.
        selections: of gates between tokens (``chunk_states``).
        counts: int32 [B], tokens of this call, without padding.
        entering: float32 [B, G, padded_length / 64, D, D], the slots' keys before each chunk.
        rotated_query_gradient: from ``window_backward``.
        query_gradient: output, [B, T, G * R * D].
        key_batch_stride, key_stride: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        recurrent_weight: weight of the recurrence.
        G: key/value heads. R: query heads per key/value head. D: head size and slots.
        BLOCK_K: slots per iteration. BLOCK_V: columns of queries per program.
        PRECISION: of float32 products.
    """
    tiles: tl.constexpr = tl.cdiv(D, BLOCK_V)
    chunk = tl.program_id(0) // tiles
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_head = query_head // R
    head, row_head = sequence * G + kv_head, sequence * G * R + query_head
    inner = tl.program_id(0) % tiles * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    tokens = chunk * _CHUNK + tl.arange(0, _CHUNK)[:, None]
    is_token = tokens < tl.load(counts + sequence)
    states = entering + (head * (padded_length // _CHUNK) + chunk) * D * D
    activation: tl.constexpr = key.dtype.element_ty
    selected = selection(selections, UP_TO)
    gradient = tl.zeros([_CHUNK, BLOCK_V], tl.float32)
    for start in range(0, D, BLOCK_K):
        dims, slots = start + tl.arange(0, BLOCK_K)[None, :], start + tl.arange(0, BLOCK_K)[:, None]
        log_decays = finite(tl.load(gates + (head * padded_length + tokens) * D + dims, mask=dims < D, other=0.0))
        high, low = split(log_decays, activation)
        upstream = score_gradient + (row_head * padded_length + tokens) * D + dims
        upstream = tl.load(upstream, mask=dims < D, other=0.0) * decays(selected, high, low, PRECISION)
        before = tl.load(states + slots * D + inner, mask=(slots < D) & (inner < D), other=0.0)
        gradient = tl.dot(upstream, before, gradient, input_precision=PRECISION)
    keys = key + sequence * key_batch_stride + tokens * key_stride + kv_head * D + inner
    keys = tl.load(keys, mask=is_token & (inner < D), other=0.0)
    own_products = tl.load(products + (row_head * padded_length + tokens) * _CHUNK + tl.arange(0, _CHUNK)[None, :])
    gradient = tl.dot(own_products, keys, gradient, input_precision=PRECISION)
    real = is_token & (inner < D)
    angles = (sequence * length + tokens) * (D // 2) + inner % (D // 2)
    turned = rotated_query_gradient + row_head * padded_length * D
    windowed = unrotated(turned, tokens, real, angles, cos, sin, inner, D)
    target = query_gradient + (sequence * length + tokens) * (G * R * D) + query_head * D + inner
    result = tl.where(real, recurrent_weight * gradient + windowed, 0.0)
    tl.store(target, result.to(query_gradient.dtype.element_ty), mask=(tokens < length) & (inner < D))
