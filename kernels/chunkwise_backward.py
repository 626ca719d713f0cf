"""Gradients of the recurrence: of queries, keys and values, from the gradient of a layer's output.

For S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, read as o_t = S_t^T q_t, let U_t be the gradient of S_t through later
tokens. Both matrices are computed again at the ends of chunks (``chunk_states``). A pair of a query and an earlier key
adds to the gradients of both, of the key's value, and of every gate between them.

Pairs are split so that each kind is a few matrix products. Some have one token outside the chunk: they go through S or
U. Those of one token have no gate between them. All others are cut at the middle of the smallest aligned segment of 2,
4, .. 64 tokens that holds both: the key decays up to the middle and the query from there, so that all pairs cut at
segments of one size are one product.

As in ``chunkwise``, every exponent is a sum of the gates between two tokens, and no gradient is a difference of sums:
the usual reverse cumulative sum of q dq - k dk loses all digits where gates are strong.
"""

import triton
import triton.language as tl

from liger_export.kernels.chunk_states import AFTER, UP_TO, decays, selection, split
from liger_export.kernels.chunkwise import is_pair
from liger_export.kernels.features import finite
from liger_export.kernels.plans import CHUNK, HALVINGS

__all__ = ["pair_gradients_kernel", "pair_products_kernel", "value_gradients_kernel"]

_CHUNK = tl.constexpr(CHUNK)
_HALVINGS = tl.constexpr(HALVINGS)


@triton.jit
def pair_gradients_kernel(
    value,
    output_gradient,
    query_features,
    features,
    gates,
    selections,
    counts,
    entering,
    leaving,
    into_queries,
    into_keys,
    into_gates,
    value_batch_stride,
    value_stride,
    gradient_batch_stride,
    gradient_stride,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute a query head's gradients of features and gates. Grid (chunks * ceil(D / BLOCK_K), G * R, B).

    Args:
        value: [B, T, G * D]. output_gradient: [B, T, G * R * D].
        query_features: from ``projection_backward``. features, gates: from ``chunkwise.prepare_kernel``.
        selections: of gates between tokens (``chunk_states``).
        counts: int32 [B], tokens of this call, without padding.
        entering, leaving: float32 [B, G, padded_length / 64, D, D], S before each chunk and U after it.
        into_queries, into_keys, into_gates: outputs, float32 [B, G * R, padded_length, D]. Those of keys and gates are
            a head's part; what goes through U is in the part of the first of the R heads.
        value_batch_stride and the other strides: elements between sequences and between tokens.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: head size.
        ADDS: add to what ``into_keys`` and ``into_gates`` hold, and leave ``into_queries`` as it is.
        BLOCK_K: dimensions of features per program. BLOCK_V: columns of a state per iteration.
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
    # 64-bit offsets are scalars: those of a tile would take many registers.
    here = (head * padded_length + first) * D
    own = ((sequence * G * R + query_head) * padded_length + first) * D
    tile = rows * D + dims
    activation: tl.constexpr = value.dtype.element_ty
    log_decays = finite(tl.load(gates + here + tile, mask=dims < D, other=0.0))
    high, low = split(log_decays, activation)
    queries = tl.load(query_features + own + tile, mask=dims < D, other=0.0).to(tl.float32)
    keys = tl.load(features + here + tile, mask=dims < D, other=0.0)

    # Scores, and pairs with one token outside the chunk
    value_rows = value + sequence * value_batch_stride + first * value_stride + kv_head * D
    upstream_rows = output_gradient + sequence * gradient_batch_stride + first * gradient_stride + query_head * D
    states = (head * (padded_length // _CHUNK) + chunk) * D * D
    into_scores = tl.zeros([_CHUNK, _CHUNK], tl.float32)  # of queries with keys
    into_turned = tl.zeros([_CHUNK, _CHUNK], tl.float32)  # of keys with queries
    query_gradient = tl.zeros([_CHUNK, BLOCK_K], tl.float32)
    key_gradient = tl.zeros([_CHUNK, BLOCK_K], tl.float32)
    through = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, D, BLOCK_V):
        inner = start + tl.arange(0, BLOCK_V)[None, :]
        upstream = tl.load(upstream_rows + rows * gradient_stride + inner, mask=is_token & (inner < D), other=0.0)
        values = tl.load(value_rows + rows * value_stride + inner, mask=is_token & (inner < D), other=0.0)
        into_scores = tl.dot(upstream, tl.trans(values), into_scores, input_precision=PRECISION)
        into_turned = tl.dot(values, tl.trans(upstream), into_turned, input_precision=PRECISION)
        slots = start + tl.arange(0, BLOCK_V)[:, None]
        transposed, inside = dims * D + slots, (dims < D) & (slots < D)
        before = tl.load(entering + states + transposed, mask=inside, other=0.0)
        after = tl.load(leaving + states + transposed, mask=inside, other=0.0)
        query_gradient = tl.dot(upstream.to(tl.float32), before, query_gradient, input_precision=PRECISION)
        key_gradient = tl.dot(values.to(tl.float32), after, key_gradient, input_precision=PRECISION)
        through += tl.sum(before * after, axis=0)
    is_first = (query_head % R == 0).to(tl.float32)
    whole = is_first * tl.exp(tl.sum(log_decays, axis=0)) * through
    selected = selection(selections, UP_TO)
    query_gradient *= decays(selected, high, low, PRECISION)
    added = (queries * query_gradient).to(activation)
    gate_gradient = tl.dot(tl.trans(selected), added, input_precision=PRECISION) + whole[None, :]
    selected = selection(selections, AFTER)
    key_gradient *= is_first * decays(selected, high, low, PRECISION)
    added = (keys * key_gradient).to(activation)
    gate_gradient = tl.dot(tl.trans(selected), added, gate_gradient, input_precision=PRECISION)

    # Pairs of one token
    diagonal = tl.sum(tl.where(rows == columns, into_scores, 0.0), axis=1)[:, None]
    query_gradient += diagonal * keys
    key_gradient += diagonal * queries

    # Pairs within the chunk, by the segment at whose middle they are cut
    into_scores, into_turned = into_scores.to(activation), into_turned.to(activation)
    for shift in range(_HALVINGS):
        selected = selection(selections, shift)
        decay = decays(selected, high, low, PRECISION)
        cut_keys = (keys * decay).to(activation)
        cut_queries = (queries * decay).to(activation)
        cut_scores = tl.where(is_pair(rows, columns, shift), into_scores, 0.0)
        into_query = decay * tl.dot(cut_scores, cut_keys, input_precision=PRECISION)
        cut_scores = tl.where(is_pair(columns, rows, shift), into_turned, 0.0)
        into_key = decay * tl.dot(cut_scores, cut_queries, input_precision=PRECISION)
        query_gradient += into_query
        key_gradient += into_key
        added = (queries * into_query + keys * into_key).to(activation)
        gate_gradient = tl.dot(tl.trans(selected), added, gate_gradient, input_precision=PRECISION)
    if ADDS:
        key_gradient += tl.load(into_keys + own + tile, mask=dims < D, other=0.0)
        gate_gradient += tl.load(into_gates + own + tile, mask=dims < D, other=0.0)
    else:
        tl.store(into_queries + own + tile, query_gradient, mask=dims < D)
    tl.store(into_keys + own + tile, key_gradient, mask=dims < D)
    tl.store(into_gates + own + tile, gate_gradient, mask=dims < D)


@triton.jit
def pair_products_kernel(
    query_features,
    features,
    gates,
    selections,
    products,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the decayed products of features of the pairs within each chunk. Grid (chunks, G * R, B).

    Args:
        query_features: from ``projection_backward``. features, gates: from ``chunkwise.prepare_kernel``.
        selections: of gates between tokens (``chunk_states``).
        products: output, [B, G * R, padded_length, 64], of each query with the keys of its chunk, zero for later keys.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: head size.
        BLOCK_K: dimensions of features per iteration.
        PRECISION: of float32 products.
    """
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, row_head = sequence * G + query_head // R, sequence * G * R + query_head
    rows, columns = tl.arange(0, _CHUNK)[:, None], tl.arange(0, _CHUNK)[None, :]
    tokens = tl.program_id(0) * _CHUNK + rows
    activation: tl.constexpr = products.dtype.element_ty
    sums = tl.zeros([_CHUNK, _CHUNK], tl.float32)
    for start in range(0, D, BLOCK_K):
        dims = start + tl.arange(0, BLOCK_K)[None, :]
        here = (head * padded_length + tokens) * D + dims
        high, low = split(finite(tl.load(gates + here, mask=dims < D, other=0.0)), activation)
        keys = tl.load(features + here, mask=dims < D, other=0.0)
        queries = query_features + (row_head * padded_length + tokens) * D + dims
        queries = tl.load(queries, mask=dims < D, other=0.0).to(tl.float32)
        sums += tl.where(rows == columns, tl.sum(queries * keys, axis=1)[:, None], 0.0)
        for shift in range(_HALVINGS):
            decay = decays(selection(selections, shift), high, low, PRECISION)
            cut_queries, cut_keys = (queries * decay).to(activation), (keys * decay).to(activation)
            cut = tl.dot(cut_queries, tl.trans(cut_keys), input_precision=PRECISION)
            sums += tl.where(is_pair(rows, columns, shift), cut, 0.0)
    tl.store(products + (row_head * padded_length + tokens) * _CHUNK + columns, sums.to(activation))


@triton.jit
def value_gradients_kernel(
    output_gradient,
    products,
    features,
    gates,
    selections,
    counts,
    leaving,
    other_gradient,
    value_gradient,
    gradient_batch_stride,
    gradient_stride,
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
    """Compute the gradients of values, and add others. Grid (chunks * ceil(D / BLOCK_V), G, B).

    Args:
        output_gradient: [B, T, G * R * D].
        products: from ``pair_products_kernel``. features, gates: from ``chunkwise.prepare_kernel``.
        selections: of gates between tokens (``chunk_states``).
        counts: int32 [B], tokens of this call, without padding.
        leaving: float32 [B, G, padded_length / 64, D, D], U after each chunk.
        other_gradient: float32 [B, G, padded_length, D], to add: the window's.
        value_gradient: output, [B, T, G * D].
        gradient_batch_stride, gradient_stride: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        recurrent_weight: weight of the recurrence.
        G: key/value heads. R: query heads per key/value head. D: head size.
        BLOCK_K: dimensions of features per iteration. BLOCK_V: columns of values per program.
        PRECISION: of float32 products.
    """
    tiles: tl.constexpr = tl.cdiv(D, BLOCK_V)
    chunk, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + kv_head
    rows, columns = tl.arange(0, _CHUNK)[:, None], tl.arange(0, _CHUNK)[None, :]
    inner = tile * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    tokens = chunk * _CHUNK + rows
    is_token = tokens < tl.load(counts + sequence)
    here = (head * padded_length + tokens) * D
    after_rows = leaving + (head * (padded_length // _CHUNK) + chunk) * D * D
    gradient = tl.zeros([_CHUNK, BLOCK_V], tl.float32)
    activation: tl.constexpr = output_gradient.dtype.element_ty
    for start in range(0, D, BLOCK_K):
        dims, slots = start + tl.arange(0, BLOCK_K)[None, :], start + tl.arange(0, BLOCK_K)[:, None]
        high, low = split(finite(tl.load(gates + here + dims, mask=dims < D, other=0.0)), activation)
        keys = tl.load(features + here + dims, mask=dims < D, other=0.0)
        keys *= decays(selection(selections, AFTER), high, low, PRECISION)
        after = tl.load(after_rows + slots * D + inner, mask=(slots < D) & (inner < D), other=0.0)
        gradient = tl.dot(keys, after, gradient, input_precision=PRECISION)
    for member in range(R):
        query_head = kv_head * R + member
        upstream = output_gradient + sequence * gradient_batch_stride + tokens * gradient_stride + query_head * D
        upstream = tl.load(upstream + inner, mask=is_token & (inner < D), other=0.0)
        own = ((sequence * G * R + query_head) * padded_length + tokens) * _CHUNK
        own_products = tl.load(products + own + columns)
        gradient = tl.dot(tl.trans(own_products), upstream, gradient, input_precision=PRECISION)
    others = tl.load(other_gradient + here + inner, mask=is_token & (inner < D), other=0.0)
    result = tl.where(is_token, recurrent_weight * gradient + others, 0.0)
    target = value_gradient + (sequence * length + tokens) * (G * D) + kv_head * D + inner
    tl.store(target, result.to(value_gradient.dtype.element_ty), mask=(tokens < length) & (inner < D))
