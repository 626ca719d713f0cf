"""States at the ends of chunks, for all chunks at once: what each chunk adds, then a scan over the chunks.

``chunkwise.pass_kernel`` goes from chunk to chunk instead, in one launch, but with only as many programs as the states
of a batch have tiles. In training, long sequences would leave most of a GPU idle.
"""

import triton
import triton.language as tl

from liger_export.kernels.features import finite
from liger_export.kernels.plans import CHUNK, HALVINGS

__all__ = [
    "AFTER",
    "UP_TO",
    "chunk_state_gradients_kernel",
    "chunk_states_kernel",
    "decays",
    "scan_kernel",
    "selection",
    "split",
]

_CHUNK = tl.constexpr(CHUNK)
AFTER = tl.constexpr(HALVINGS)
UP_TO = tl.constexpr(HALVINGS + 1)


@triton.jit
def selection(selections, index):
    """Load one of the 0/1 matrices [64, 64] that say which gates of a chunk (columns) decay a token (row).

    Indices: s for the gates between the token and the middle of its segment, whose halves have 2**s tokens; ``AFTER``
    for those after the token; ``UP_TO`` for those up to and with its own.
    """
    rows, columns = tl.arange(0, _CHUNK)[:, None], tl.arange(0, _CHUNK)[None, :]
    return tl.load(selections + index * _CHUNK * _CHUNK + rows * _CHUNK + columns)


@triton.jit
def split(log_decays, dtype: tl.constexpr):
    """Split log decays into two of a narrower type, whose sum has the digits of both."""
    high = log_decays.to(dtype)
    return high, (log_decays - high.to(tl.float32)).to(dtype)


@triton.jit
def decays(selected, high, low, PRECISION: tl.constexpr):
    """Compute each token's decay [64, N] by the selected gates, whose logarithms [64, N] are ``high`` plus ``low``."""
    sums = tl.dot(selected, high, input_precision=PRECISION)
    if high.dtype != tl.float32:
        sums = tl.dot(selected, low, sums, input_precision=PRECISION)
    return tl.exp(sums)


@triton.jit
def chunk_states_kernel(
    value,
    features,
    gates,
    selections,
    counts,
    added,
    chunk_decays,
    value_batch_stride,
    value_stride,
    padded_length,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute what each chunk's tokens leave in the state. Grid (chunks * tiles of the state, G, B).

    Args:
        value: [B, T, G * D].
        features, gates: from ``chunkwise.prepare_kernel``.
        selections: see ``selection``; in the dtype of the values.
        counts: int32 [B], tokens of this call, without padding.
        added: output, float32 [B, G, padded_length / 64, D, D].
        chunk_decays: output, float32 [B, G, padded_length / 64, D], the decay from the start of each chunk to its end.
        value_batch_stride, value_stride: elements between sequences and between tokens.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. D: head size. BLOCK_K, BLOCK_V: rows and columns of the state per program.
        PRECISION: of float32 products.
    """
    parts: tl.constexpr = tl.cdiv(D, BLOCK_V)
    tiles: tl.constexpr = parts * tl.cdiv(D, BLOCK_K)
    chunk, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = (tile // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    columns = (tile % parts) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    rows = tl.arange(0, _CHUNK)[:, None]
    tokens = chunk * _CHUNK + rows
    head = sequence * G + kv_head
    here = (head * padded_length + tokens) * D + dims
    log_decays = finite(tl.load(gates + here, mask=dims < D, other=0.0))
    high, low = split(log_decays, value.dtype.element_ty)
    keys = tl.load(features + here, mask=dims < D, other=0.0)
    keys *= decays(selection(selections, AFTER), high, low, PRECISION)
    values = value + sequence * value_batch_stride + tokens * value_stride + kv_head * D + columns
    is_token = tokens < tl.load(counts + sequence)
    values = tl.load(values, mask=is_token & (columns < D), other=0.0)
    written = tl.dot(tl.trans(keys.to(values.dtype)), values, input_precision=PRECISION)
    chunks = padded_length // _CHUNK
    slots = (tile // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    target = added + (head * chunks + chunk) * D * D + slots * D + columns
    tl.store(target, written, mask=(slots < D) & (columns < D))
    if tile % parts == 0:
        whole = tl.exp(tl.sum(log_decays, axis=0))[None, :]
        tl.store(chunk_decays + (head * chunks + chunk) * D + dims, whole, mask=dims < D)


@triton.jit
def chunk_state_gradients_kernel(
    output_gradient,
    query_features,
    gates,
    selections,
    counts,
    added,
    gradient_batch_stride,
    gradient_stride,
    padded_length,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradient of the state before each chunk through its tokens. Grid (chunks * tiles of the state, G, B).

    Args:
        output_gradient: [B, T, G * R * D].
        query_features: from ``chunkwise_backward.prepare_queries_kernel``. gates: from ``chunkwise.prepare_kernel``.
        selections: see ``selection``; in the dtype of the gradient.
        counts: int32 [B], tokens of this call, without padding.
        added: output, float32 [B, G, padded_length / 64, D, D].
        gradient_batch_stride, gradient_stride: elements between sequences and between tokens.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. R: query heads per key/value head. D: head size.
        BLOCK_K, BLOCK_V: rows and columns of the state per program.
        PRECISION: of float32 products.
    """
    parts: tl.constexpr = tl.cdiv(D, BLOCK_V)
    tiles: tl.constexpr = parts * tl.cdiv(D, BLOCK_K)
    chunk, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    kv_head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = (tile // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    columns = (tile % parts) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    rows = tl.arange(0, _CHUNK)[:, None]
    tokens = chunk * _CHUNK + rows
    is_token = tokens < tl.load(counts + sequence)
    head = sequence * G + kv_head
    log_decays = finite(tl.load(gates + (head * padded_length + tokens) * D + dims, mask=dims < D, other=0.0))
    high, low = split(log_decays, output_gradient.dtype.element_ty)
    decay = decays(selection(selections, UP_TO), high, low, PRECISION)
    read = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    for member in range(R):
        upstream = output_gradient + sequence * gradient_batch_stride + tokens * gradient_stride
        upstream = tl.load(upstream + (kv_head * R + member) * D + columns, mask=is_token & (columns < D), other=0.0)
        queries = query_features + ((head * R + member) * padded_length + tokens) * D + dims
        queries = tl.load(queries, mask=dims < D, other=0.0).to(tl.float32) * decay
        read = tl.dot(tl.trans(queries.to(upstream.dtype)), upstream, read, input_precision=PRECISION)
    slots = (tile // parts) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    target = added + (head * (padded_length // _CHUNK) + chunk) * D * D + slots * D + columns
    tl.store(target, read, mask=(slots < D) & (columns < D))


@triton.jit
def _then(first_decay, first_added, second_decay, second_added):
    """Compose two maps of a state, state * decay + added."""
    return first_decay * second_decay, first_added * second_decay + second_added


@triton.jit
def scan_kernel(
    added,
    chunk_decays,
    state,
    boundaries,
    next_state,
    padded_length,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Scan over the chunks: the state before each one, or in reverse its gradient after it. Grid (D * D / BLOCK, G, B).

    Args:
        added: float32 [B, G, padded_length / 64, D, D], what each chunk adds.
        chunk_decays: from ``chunk_states_kernel``.
        state: float32 [B, G, D, D], before the first chunk. In reverse, the scan starts at zero instead.
        boundaries: output, float32 [B, G, padded_length / 64, D, D].
        next_state: output, float32 [B, G, D, D], after the last chunk, in reverse before the first.
        padded_length: T rounded up to a multiple of 64.
        G: key/value heads. D: head size.
        BLOCK: elements of a state per program. CHUNKS: chunks per iteration.
        REVERSE: from the last chunk to the first.
    """
    head = tl.program_id(2).to(tl.int64) * G + tl.program_id(1)
    elements = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    real, chunks = elements < D * D, padded_length // _CHUNK
    if REVERSE:
        carried = tl.zeros([1, BLOCK], tl.float32)
    else:
        carried = tl.load(state + head * D * D + elements, mask=real, other=0.0)
    each = tl.arange(0, CHUNKS)[:, None]
    for first in range(0, chunks + 1, CHUNKS):
        steps = first + each
        crossed = chunks - steps if REVERSE else steps - 1  # the chunk between this boundary and the one before
        reached = head * chunks + (chunks - 1 - steps if REVERSE else steps)
        is_crossed = (steps > 0) & (steps <= chunks) & real
        additions = tl.load(added + (head * chunks + crossed) * D * D + elements, mask=is_crossed, other=0.0)
        decays = tl.load(chunk_decays + (head * chunks + crossed) * D + elements // D, mask=is_crossed, other=1.0)
        decays, additions = tl.associative_scan((decays, additions), 0, _then)
        states = decays * carried + additions
        tl.store(boundaries + reached * D * D + elements, states, mask=(steps < chunks) & real)
        final = next_state + head * D * D + elements + steps * 0
        tl.store(final, states, mask=(steps == chunks) & real)
        carried = tl.sum(tl.where(each == CHUNKS - 1, states, 0.0), axis=0)[None, :]
