"""The chunkwise kernels: the recurrence of Liger attention for several tokens, from any initial state.

Together with ``window``: five launches per layer. Tokens are divided into chunks of 64 and blocks of 16. For
S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, read as o_t = S_t^T q_t (the chunkwise form of arXiv 2312.06635, section 4.3),
a query reads

- the state at the start of its chunk, decayed since then;
- the keys of its chunk's earlier blocks, with three decays: to the end of the key's block, through the blocks between,
  and from the start of the query's block; together one matrix product;
- the keys of its own block: its own key without a decay, and each other key with two, to the middle of the smallest
  aligned segment of 2, 4, 8 or 16 tokens that holds both, and from there. The pairs cut at segments of one size are one
  matrix product.

Every exponent is a sum of the gates between two tokens, never positive and never a difference of two sums, so that the
strongest gates neither overflow nor lose digits. So the gate of a document's first token can be minus infinity: nothing
is left of the documents before it. Padding, which may only end a row, writes nothing, and its output is zero.
"""

import triton
import triton.language as tl

from liger_export.kernels.features import (
    GSA,
    begins_document,
    finite,
    forgotten,
    key_features,
    log_gates,
    rotated,
    softmax_rows,
)
from liger_export.kernels.plans import BLOCK, CHUNK

__all__ = ["is_pair", "output_kernel", "pass_kernel", "prepare_kernel"]

_BLOCK = tl.constexpr(BLOCK)
_CHUNK = tl.constexpr(CHUNK)
_BLOCKS = tl.constexpr(CHUNK // BLOCK)
_BLOCK_HALVINGS = tl.constexpr(BLOCK.bit_length() - 1)


@triton.jit
def _is_between(gates, tokens, shift):
    """Tell which gates lie between tokens and the middle of their segments of ``2**(shift + 1)`` tokens.

    A token in the second half is a query, whose own gate is included; one in the first half is a key.
    """
    inside = (1 << shift) - 1
    is_up_to = (gates & inside) <= (tokens & inside)
    return ((gates >> shift) == (tokens >> shift)) & ((((tokens >> shift) & 1) == 1) == is_up_to)


@triton.jit
def is_pair(queries, keys, shift):
    """Tell which queries and keys are cut at the middle of a segment of ``2**(shift + 1)`` tokens."""
    return (((queries >> shift) & 1) == 1) & ((keys >> shift) == (queries >> shift) - 1)


@triton.jit
def prepare_kernel(
    key,
    cos,
    sin,
    position_ids,
    counts,
    features,
    gates,
    decayed_keys,
    block_gates,
    rotated_keys,
    key_batch_stride,
    key_stride,
    length,
    padded_length,
    gate_normalizer,
    MIXER: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute key features, gates and rotated keys for the other kernels. Grid (padded_length / 16, G, B).

    Args:
        key: [B, T, G * D].
        cos, sin: float32 [B, T, D / 2].
        position_ids: int64 [B, T]; a 0 after the first token begins a document.
        counts: int32 [B], tokens of this call, without padding.
        features: output, float32 [B, G, padded_length, D], the key features; for gsa, what is written to each slot.
        gates: output, float32 [B, G, padded_length, D], the log decays; minus infinity where a document begins.
        decayed_keys: output, [B, G, padded_length, D], key features decayed to the end of their block.
        block_gates: output, float32 [B, G, padded_length / 16, D], gates summed over each block.
        rotated_keys: output, [B, G, padded_length, D].
        key_batch_stride, key_stride: elements between sequences and between tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        gate_normalizer: divides the log gates.
        MIXER: number of the mixer in ``plans.MIXER_NUMBERS``.
        G: key/value heads. D: head size. BLOCK_D: D rounded up to a power of two.
    """
    block, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = block * _BLOCK + tl.arange(0, _BLOCK)[:, None]
    count = tl.load(counts + sequence)
    is_token = tokens < count
    real = is_token & (dims < D)
    key_row = key + sequence * key_batch_stride + kv_head * D
    keys = tl.load(key_row + tokens * key_stride + dims, mask=real, other=0.0)

    later = tokens + 1
    has_later = (tokens % _BLOCK < _BLOCK - 1) & (later < count)
    later_keys = tl.load(key_row + later * key_stride + dims, mask=has_later & (dims < D), other=0.0)
    later_gates = log_gates(later_keys.to(tl.float32), has_later & (dims < D), gate_normalizer)
    positions = position_ids + sequence * length
    later_gates = tl.where(begins_document(positions, later, has_later), float("-inf"), later_gates)
    decay_to_end = tl.exp(tl.cumsum(later_gates, axis=0, reverse=True))

    wide_keys = keys.to(tl.float32)
    key_gates = log_gates(wide_keys, real, gate_normalizer)
    if MIXER == GSA:
        written = forgotten(key_gates)
    else:
        written = tl.where(is_token, key_features(wide_keys, dims < D, MIXER), 0.0)
    key_gates = tl.where(begins_document(positions, tokens, is_token), float("-inf"), key_gates)
    head = sequence * G + kv_head
    here = (head * padded_length + tokens) * D + dims
    tl.store(features + here, written, mask=dims < D)
    tl.store(gates + here, key_gates, mask=dims < D)
    tl.store(decayed_keys + here, (written * decay_to_end).to(decayed_keys.dtype.element_ty), mask=dims < D)
    sums = block_gates + (head * (padded_length // _BLOCK) + block) * D + dims
    tl.store(sums, tl.sum(key_gates, axis=0)[None, :], mask=dims < D)

    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    cosine = tl.load(cos + angles, mask=real, other=0.0)
    sine = tl.load(sin + angles, mask=real, other=0.0)
    partner_keys = tl.load(key_row + tokens * key_stride + partners, mask=real, other=0.0)
    turned = rotated(keys, partner_keys, cosine, sine, dims, D)
    tl.store(rotated_keys + here, turned.to(rotated_keys.dtype.element_ty), mask=dims < D)


@triton.jit
def _gates_between(sums, blocks, stop, dims, D: tl.constexpr):
    """Sum gates over a chunk's blocks after ``blocks`` and before ``stop``. Returns [N, BLOCK_K].

    Args:
        sums: pointer to the chunk's first row of block_gates.
        blocks: [N, 1], 0 to 3, or -1 to start before the chunk.
        stop: a block, or 4 for the end of the chunk.
        dims: [1, BLOCK_K].
        D: head size.
    """
    between = tl.load(sums + (blocks + 1) * D + dims, mask=(blocks + 1 < stop) & (dims < D), other=0.0)
    for step in tl.static_range(2, _BLOCKS):
        between += tl.load(sums + (blocks + step) * D + dims, mask=(blocks + step < stop) & (dims < D), other=0.0)
    return between


@triton.jit
def pass_kernel(
    value,
    decayed_keys,
    block_gates,
    counts,
    state,
    entering,
    next_state,
    value_batch_stride,
    value_stride,
    padded_length,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pass the state from chunk to chunk. Grid (ceil(D / BLOCK_K) * ceil(D / BLOCK_V), G, B).

    Args:
        value: [B, T, G * D].
        decayed_keys, block_gates: from ``prepare_kernel``.
        counts: int32 [B], tokens of this call, without padding.
        state: float32 [B, G, D, D], before the first token.
        entering: output, float32 [B, G, padded_length / 64, D, D], the state at the start of each chunk.
        next_state: output, float32 [B, G, D, D], after the last token.
        value_batch_stride, value_stride: elements between sequences and between tokens.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. D: head size. BLOCK_K, BLOCK_V: rows and columns of the state per program.
        PRECISION: of float32 products: "ieee", "tf32x3" or "tf32".
    """
    parts: tl.constexpr = tl.cdiv(D, BLOCK_V)
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    rows = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    columns = (tl.program_id(0) % parts) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    in_chunk = tl.arange(0, _CHUNK)[:, None]
    head = sequence * G + kv_head
    tile, real = rows * D + columns, (rows < D) & (columns < D)
    memory = tl.load(state + head * D * D + tile, mask=real, other=0.0)
    chunks, count = padded_length // _CHUNK, tl.load(counts + sequence)
    for chunk in range(chunks):
        tl.store(entering + (head * chunks + chunk) * D * D + tile, memory, mask=real)
        sums = block_gates + (head * chunks + chunk) * _BLOCKS * D
        tokens = chunk * _CHUNK + in_chunk
        values = value + sequence * value_batch_stride + tokens * value_stride + kv_head * D + columns
        values = tl.load(values, mask=(tokens < count) & (columns < D), other=0.0)
        keys = tl.load(decayed_keys + (head * padded_length + tokens) * D + dims, mask=dims < D, other=0.0)
        decay = tl.exp(_gates_between(sums, in_chunk // _BLOCK, _BLOCKS, dims, D))
        keys = (keys.to(tl.float32) * decay).to(values.dtype)
        whole = tl.load(sums + rows, mask=rows < D, other=0.0)
        for block in tl.static_range(1, _BLOCKS):
            whole += tl.load(sums + block * D + rows, mask=rows < D, other=0.0)
        memory = tl.exp(whole) * memory + tl.dot(tl.trans(keys), values, input_precision=PRECISION)
    tl.store(next_state + head * D * D + tile, memory, mask=real)


@triton.jit
def output_kernel(
    query,
    value,
    features,
    gates,
    decayed_keys,
    block_gates,
    counts,
    entering,
    output,
    query_batch_stride,
    query_stride,
    value_batch_stride,
    value_stride,
    length,
    padded_length,
    recurrent_weight,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the recurrence's output for a block and mix it with the window's. Grid (blocks, G * ceil(R / HEADS), B).

    Args:
        query: [B, T, G * R * D]. value: [B, T, G * D].
        features, gates, decayed_keys, block_gates: from ``prepare_kernel``.
        counts: int32 [B], tokens of this call, without padding.
        entering: from ``pass_kernel``.
        output: [B, T, G * R * D]; holds the window's output, and receives the layer's.
        query_batch_stride, query_stride, value_batch_stride, value_stride: elements between sequences and tokens.
        length: T. padded_length: T rounded up to a multiple of 64.
        recurrent_weight: weight of the recurrence.
        G: key/value heads. R: query heads per key/value head. D: head size. HEADS: query heads per program.
        BLOCK_D: D rounded up to a power of two. BLOCK_V: value columns per iteration.
        PRECISION: of float32 products.
    """
    parts: tl.constexpr = tl.cdiv(R, HEADS)
    block, sequence = tl.program_id(0), tl.program_id(2).to(tl.int64)
    kv_head, first = tl.program_id(1) // parts, tl.program_id(1) % parts * HEADS
    chunk, own = block // _BLOCKS, block % _BLOCKS
    head = sequence * G + kv_head
    dims = tl.arange(0, BLOCK_D)[None, :]
    real_dims = dims < D

    # Rows: the tokens of the block, once per query head.
    rows = tl.arange(0, HEADS * _BLOCK)[:, None]
    members, tokens = first + rows // _BLOCK, block * _BLOCK + rows % _BLOCK
    count = tl.load(counts + sequence)
    is_token = tokens < count
    is_row = is_token & (members < R)
    query_rows = query + sequence * query_batch_stride + tokens * query_stride + (kv_head * R + members) * D
    queries = tl.load(query_rows + dims, mask=is_row & real_dims, other=0.0).to(tl.float32)
    queries = softmax_rows(queries, real_dims)
    by_head = tl.reshape(queries, [HEADS, _BLOCK, BLOCK_D])

    # The queries' own block: pairs of one token, then the others by the segment at whose middle they are cut
    to, own_keys = tl.arange(0, _BLOCK)[:, None], tl.arange(0, _BLOCK)[None, :]
    block_rows = (head * padded_length + block * _BLOCK) * D + dims
    own_features = tl.load(features + block_rows + to * D, mask=real_dims, other=0.0)
    own_gates = tl.load(gates + block_rows + to * D, mask=real_dims, other=0.0)
    diagonal = tl.reshape(tl.sum(by_head * own_features[None, :, :], axis=2), [HEADS * _BLOCK, 1])
    own_scores = tl.where(rows % _BLOCK == own_keys, diagonal, 0.0)
    for shift in range(_BLOCK_HALVINGS):
        between = _is_between(own_keys, to, shift).to(tl.float32)
        decay = tl.exp(tl.dot(between, finite(own_gates), input_precision="ieee"))
        cut_queries = tl.reshape(by_head * decay[None, :, :], [HEADS * _BLOCK, BLOCK_D])
        products = tl.dot(cut_queries, tl.trans(own_features * decay), input_precision=PRECISION)
        own_scores += tl.where(is_pair(rows % _BLOCK, own_keys, shift), products, 0.0)

    # Earlier blocks of the chunk
    decay = tl.exp(tl.cumsum(own_gates, axis=0))
    queries = tl.reshape(by_head * decay[None, :, :], [HEADS * _BLOCK, BLOCK_D])
    sums = block_gates + (head * (padded_length // _CHUNK) + chunk) * _BLOCKS * D
    in_chunk = tl.arange(0, _CHUNK)[:, None]
    earlier = chunk * _CHUNK + in_chunk
    is_earlier = in_chunk < own * _BLOCK
    keys = decayed_keys + (head * padded_length + earlier) * D + dims
    keys = tl.load(keys, mask=is_earlier & real_dims, other=0.0)
    activation = keys.dtype
    keys = (keys.to(tl.float32) * tl.exp(_gates_between(sums, in_chunk // _BLOCK, own, dims, D))).to(activation)
    scores = tl.dot(queries.to(activation), tl.trans(keys), input_precision=PRECISION)

    # State at the start of the chunk
    queries = queries * tl.exp(_gates_between(sums, tl.full([1, 1], -1, tl.int32), own, dims, D))
    own_scores = own_scores.to(activation)
    own_tokens = block * _BLOCK + to
    memory = entering + (head * (padded_length // _CHUNK) + chunk) * D * D
    value_rows = value + sequence * value_batch_stride + kv_head * D
    output_rows = output + (sequence * length + tokens) * (G * R * D) + (kv_head * R + members) * D
    state_rows = tl.arange(0, BLOCK_D)[:, None]
    for start in range(0, D, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)[None, :]
        tile = tl.load(memory + state_rows * D + columns, mask=(state_rows < D) & (columns < D), other=0.0)
        read = tl.dot(queries, tile, input_precision=PRECISION)
        values = tl.load(value_rows + earlier * value_stride + columns, mask=is_earlier & (columns < D), other=0.0)
        read = tl.dot(scores.to(activation), values, read, input_precision=PRECISION)
        values = tl.load(
            value_rows + own_tokens * value_stride + columns, mask=(own_tokens < count) & (columns < D), other=0.0
        )
        read = tl.dot(own_scores, values, read, input_precision=PRECISION)
        windowed = tl.load(output_rows + columns, mask=is_row & (columns < D), other=0.0).to(tl.float32)
        mixed = tl.where(is_token, recurrent_weight * read + (1 - recurrent_weight) * windowed, 0.0)
        stored = (tokens < length) & (members < R) & (columns < D)
        tl.store(output_rows + columns, mixed.to(output.dtype.element_ty), mask=stored)
