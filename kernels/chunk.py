"""The chunk kernels: many tokens of Liger attention from any starting state, five launches a layer.

Tokens stand in blocks of 16 and chunks of 64. For S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, read as o_t = S_t^T q_t
(the chunkwise form of arXiv 2312.06635, section 4.3), a query reads

- the state that enters its chunk, decayed since,
- keys of its chunk's earlier blocks, decayed to their block's end, through the blocks between, and from its own
  block's start: three exponents, each a sum of gates and so never positive, that make one matrix product,
- keys of its own block pair by pair.

Every exponent is a sum of the gates between two tokens, never a difference of two sums: the strongest gates neither
overflow nor lose digits. Padding, which may only end a row, writes nothing and its output is zero.
"""

import triton
import triton.language as tl

from liger_export.kernels.features import key_features, log_gates, rotated, softmax_rows
from liger_export.kernels.plans import BLOCK, CHUNK

__all__ = ["leave_kernel", "output_kernel", "pass_kernel", "prepare_kernel", "window_kernel"]

_BLOCK = tl.constexpr(BLOCK)
_CHUNK = tl.constexpr(CHUNK)
_BLOCKS = tl.constexpr(CHUNK // BLOCK)


@triton.jit
def prepare_kernel(
    key,
    cos,
    sin,
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
    """What the other kernels need of a block's keys. Grid (padded_length / 16, G, B).

    Args:
        key: [B, T, G * D] of any batch and token strides, in elements.
        cos: float32 [B, T, D / 2]; sin: likewise.
        counts: int32 [B], tokens of this call, padding not counted.
        features: float32 [B, G, padded_length, D], what keys write; gates: likewise, their log decays.
        decayed_keys: [B, G, padded_length, D], features decayed to their block's end.
        block_gates: float32 [B, G, padded_length / 16, D], gates summed over a block.
        rotated_keys: [B, G, padded_length, D].
        key_batch_stride: elements; key_stride: likewise.
        length: T. padded_length: T as a multiple of 64.
        gate_normalizer: divides the log gates.
        MIXER: of ``plans.MIXER_NUMBERS``. G: key/value heads. D: head size. BLOCK_D: D as a power of two.
    """
    block, group, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = block * _BLOCK + tl.arange(0, _BLOCK)[:, None]
    count = tl.load(counts + sequence)
    is_token = tokens < count
    real = is_token & (dims < D)
    key_row = key + sequence * key_batch_stride + group * D
    keys = tl.load(key_row + tokens * key_stride + dims, mask=real, other=0.0)

    later = tokens + 1
    has_later = (tokens % _BLOCK < _BLOCK - 1) & (later < count)
    later_keys = tl.load(key_row + later * key_stride + dims, mask=has_later & (dims < D), other=0.0)
    later_gates = log_gates(later_keys.to(tl.float32), has_later & (dims < D), gate_normalizer)
    decay_to_end = tl.exp(tl.cumsum(later_gates, axis=0, reverse=True))

    wide_keys = keys.to(tl.float32)
    written = tl.where(is_token, key_features(wide_keys, dims < D, MIXER), 0.0)
    key_gates = log_gates(wide_keys, real, gate_normalizer)
    head = sequence * G + group
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
    """Gates summed over a chunk's blocks after ``blocks`` and before ``stop``: [N, dims].

    Args:
        sums: pointer to the chunk's first row of block_gates.
        blocks: [N, 1], 0 to 3, or -1 for what stands before the chunk.
        stop: a block, or 4 for the chunk's end.
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
    """The state that enters every chunk, chunk after chunk. Grid (ceil(D / BLOCK_K) * ceil(D / BLOCK_V), G, B).

    Args:
        value: [B, T, G * D] of any batch and token strides.
        decayed_keys: as ``prepare_kernel`` leaves them; block_gates: likewise.
        counts: int32 [B], tokens of this call, padding not counted.
        state: float32 [B, G, D, D], before the first token.
        entering: float32 [B, G, padded_length / 64, D, D].
        next_state: float32 [B, G, D, D], after the last token.
        value_batch_stride: elements; value_stride: likewise.
        padded_length: T as a multiple of 64.
        G: key/value heads. D: head size. BLOCK_K, BLOCK_V: rows and columns of the state in one program.
        PRECISION: of float32 products, "ieee", "tf32x3" or "tf32".
    """
    parts: tl.constexpr = tl.cdiv(D, BLOCK_V)
    group, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    rows = (tl.program_id(0) // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    columns = (tl.program_id(0) % parts) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    in_chunk = tl.arange(0, _CHUNK)[:, None]
    head = sequence * G + group
    tile, real = rows * D + columns, (rows < D) & (columns < D)
    memory = tl.load(state + head * D * D + tile, mask=real, other=0.0)
    chunks, count = padded_length // _CHUNK, tl.load(counts + sequence)
    for chunk in range(chunks):
        tl.store(entering + (head * chunks + chunk) * D * D + tile, memory, mask=real)
        sums = block_gates + (head * chunks + chunk) * _BLOCKS * D
        tokens = chunk * _CHUNK + in_chunk
        values = value + sequence * value_batch_stride + tokens * value_stride + group * D + columns
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
    """The recurrence's output for one block's tokens, mixed into the window's. Grid (blocks, G * ceil(R / HEADS), B).

    Args:
        query: [B, T, G * R * D] of any batch and token strides; value: [B, T, G * D], likewise.
        features: as ``prepare_kernel`` leaves them; gates, decayed_keys, block_gates: likewise.
        counts: int32 [B], tokens of this call.
        entering: as ``pass_kernel`` leaves it.
        output: [B, T, G * R * D], the window's on entry, the layer's on return.
        query_batch_stride: elements; query_stride, value_batch_stride, value_stride: likewise.
        length: T. padded_length: T as a multiple of 64.
        recurrent_weight: share of the recurrence.
        G: key/value heads. R: query heads for each. D: head size. HEADS: query heads in one program.
        BLOCK_D: D as a power of two. BLOCK_V: value columns taken at a time.
        PRECISION: of float32 products.
    """
    parts: tl.constexpr = tl.cdiv(R, HEADS)
    block, sequence = tl.program_id(0), tl.program_id(2).to(tl.int64)
    group, first = tl.program_id(1) // parts, tl.program_id(1) % parts * HEADS
    chunk, own = block // _BLOCKS, block % _BLOCKS
    head = sequence * G + group
    dims = tl.arange(0, BLOCK_D)[None, :]
    real_dims = dims < D

    # Rows are the tokens of the block, once for each query head.
    rows = tl.arange(0, HEADS * _BLOCK)[:, None]
    members, tokens = first + rows // _BLOCK, block * _BLOCK + rows % _BLOCK
    count = tl.load(counts + sequence)
    is_token = tokens < count
    is_row = is_token & (members < R)
    query_rows = query + sequence * query_batch_stride + tokens * query_stride + (group * R + members) * D
    queries = tl.load(query_rows + dims, mask=is_row & real_dims, other=0.0).to(tl.float32)
    queries = softmax_rows(queries, real_dims)
    by_head = tl.reshape(queries, [HEADS, _BLOCK, BLOCK_D])

    # Its own block, pair by pair: the gates between accumulate as the key moves away from the queries.
    to = tl.arange(0, _BLOCK)[:, None]
    block_rows = (head * padded_length + block * _BLOCK) * D + dims
    between = tl.zeros([_BLOCK, BLOCK_D], tl.float32)
    own_scores = tl.zeros([HEADS, _BLOCK, _BLOCK], tl.float32)
    for back in range(_BLOCK):
        at = _BLOCK - 1 - back
        # The last key has no query after it: any row will do.
        gate = tl.load(gates + block_rows + (at + 1) % _BLOCK * D, mask=real_dims, other=0.0)
        between += tl.where(to > at, gate, 0.0)
        feature = tl.load(features + block_rows + at * D, mask=real_dims, other=0.0)
        decayed = tl.where(to >= at, feature * tl.exp(between), 0.0)
        scores = tl.sum(by_head * decayed[None, :, :], axis=2)
        is_key = tl.arange(0, _BLOCK)[None, None, :] == at
        own_scores = tl.where(is_key, scores[:, :, None], own_scores)

    # The chunk's earlier blocks
    own_gates = tl.load(gates + block_rows + to * D, mask=real_dims, other=0.0)
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

    # The state that entered the chunk
    queries = queries * tl.exp(_gates_between(sums, tl.full([1, 1], -1, tl.int32), own, dims, D))
    own_scores = tl.reshape(own_scores, [HEADS * _BLOCK, _BLOCK]).to(activation)
    own_tokens = block * _BLOCK + to
    memory = entering + (head * (padded_length // _CHUNK) + chunk) * D * D
    value_rows = value + sequence * value_batch_stride + group * D
    output_rows = output + (sequence * length + tokens) * (G * R * D) + (group * R + members) * D
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


@triton.jit
def _span_rows(past, present, tokens, held, dims, columns: tl.constexpr, window: tl.constexpr):
    """Rows of the window's past and the call's present as one: token -1 is the newest of the past.

    Args:
        past: pointer to a head's window [W, D].
        present: pointers to the call's rows [N, dims].
        tokens: [N, 1], counted from the call's first.
        held: rows that the past holds, at most W.
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
    """Softmax over the last W keys, a band taken tile by tile. Grid (ceil(T / BLOCK_M), G * R, B).

    Args:
        query: [B, T, G * R * D] of any batch and token strides; value: [B, T, G * D], likewise.
        rotated_keys: as ``prepare_kernel`` leaves them.
        cos: float32 [B, T, D / 2]; sin: likewise.
        position_ids: int64 [B, T]. counts: int32 [B], tokens of this call.
        window_key: [B, G, W, D], before the first token; window_value: likewise.
        output: [B, T, G * R * D].
        query_batch_stride: elements; query_stride, value_batch_stride, value_stride: likewise.
        length: T. padded_length: T as a multiple of 64.
        G: key/value heads. R: query heads for each. D: head size. W: keys in the window.
        BLOCK_D: D as a power of two. BLOCK_M: queries of a program. BLOCK_N: keys taken at a time.
        PRECISION: of float32 products.
    """
    query_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + query_head // R
    start = tl.program_id(0) * BLOCK_M
    dims = tl.arange(0, BLOCK_D)[None, :]
    tokens = start + tl.arange(0, BLOCK_M)[:, None]
    count = tl.load(counts + sequence)
    is_token = tokens < count
    held = tl.minimum(tl.maximum(tl.load(position_ids + sequence * length), 0), W).to(tl.int32)

    real = is_token & (dims < D)
    partners = tl.where(dims < D // 2, dims + D // 2, dims - D // 2)
    query_rows = query + sequence * query_batch_stride + tokens * query_stride + query_head * D
    angles = (sequence * length + tokens) * (D // 2) + dims % (D // 2)
    queries = tl.load(query_rows + dims, mask=real, other=0.0)
    partner_queries = tl.load(query_rows + partners, mask=real, other=0.0)
    cosine = tl.load(cos + angles, mask=real, other=0.0)
    sine = tl.load(sin + angles, mask=real, other=0.0)
    queries = rotated(queries, partner_queries, cosine, sine, dims, D).to(queries.dtype)

    largest = tl.full([BLOCK_M, 1], -1e30, tl.float32)  # finite: rows without a key yet stay free of NaN
    total = tl.zeros([BLOCK_M, 1], tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    value_rows = value + sequence * value_batch_stride + (query_head // R) * D
    for offset in range(0, W - 1 + BLOCK_M, BLOCK_N):
        others = start - (W - 1) + offset + tl.arange(0, BLOCK_N)[:, None]
        present = (others >= 0) & (others < count) & (dims < D)
        keys = tl.load(rotated_keys + (head * padded_length + others) * D + dims, mask=present, other=0.0)
        keys = _span_rows(window_key + head * W * D, keys, others, held, dims, D, W)
        values = tl.load(value_rows + others * value_stride + dims, mask=present, other=0.0)
        values = _span_rows(window_value + head * W * D, values, others, held, dims, D, W)

        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (D**-0.5)
        key_tokens = tl.trans(others)
        visible = (key_tokens <= tokens) & (key_tokens > tokens - W) & (key_tokens >= -held)
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
    """The window after the last token, oldest first. Grid (ceil(W / BLOCK_W), G, B).

    Args:
        value: [B, T, G * D] of any batch and token strides.
        rotated_keys: as ``prepare_kernel`` leaves them.
        position_ids: int64 [B, T]. counts: int32 [B], tokens of this call.
        window_key: [B, G, W, D], before the first token; window_value: likewise.
        next_window_key: [B, G, W, D], another buffer; next_window_value: likewise.
        value_batch_stride: elements; value_stride: likewise.
        length: T. padded_length: T as a multiple of 64.
        G: key/value heads. D: head size. W: keys in the window.
        BLOCK_D: D as a power of two. BLOCK_W: rows of a program.
    """
    group, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = sequence * G + group
    dims = tl.arange(0, BLOCK_D)[None, :]
    rows = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)[:, None]
    held = tl.minimum(tl.maximum(tl.load(position_ids + sequence * length), 0), W).to(tl.int32)
    count = tl.load(counts + sequence)
    left = tl.minimum(held + count, W)
    tokens = tl.where(rows < left, count - left + rows, -W - 1)  # rows past the length read nothing
    present = (tokens >= 0) & (dims < D)
    target = head * W * D + rows * D + dims
    stored = (rows < W) & (dims < D)
    keys = tl.load(rotated_keys + (head * padded_length + tokens) * D + dims, mask=present, other=0.0)
    keys = _span_rows(window_key + head * W * D, keys, tokens, held, dims, D, W)
    tl.store(next_window_key + target, keys, mask=stored)
    value_rows = value + sequence * value_batch_stride + group * D
    values = tl.load(value_rows + tokens * value_stride + dims, mask=present, other=0.0)
    values = _span_rows(window_value + head * W * D, values, tokens, held, dims, D, W)
    tl.store(next_window_value + target, values, mask=stored)
