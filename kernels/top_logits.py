"""Top logits of a vocabulary and the sum that normalizes their probabilities: the kernels of ``liger::Candidates``.

A list holds the K largest logits of a range of tokens, as keys in token order. Each list comes with the largest logit
and the sum of exp((logit - largest) / temperature) over all tokens of the range. One program lists each part of the
vocabulary. Further programs merge several lists each, until one list is left, which is then sorted.
"""

import triton
import triton.language as tl

from liger_export.kernels.dependent_launch import wait_for_activations
from liger_export.kernels.plans import TOP_LOGITS

__all__ = ["list_kernel", "merge_kernel", "order_kernel"]

_K = tl.constexpr(TOP_LOGITS)
_TOKEN_BITS = tl.constexpr(24)
_TOKENS = tl.constexpr((1 << 24) - 1)


@triton.jit
def _keys_of(logits, tokens):
    """Sort keys, int64: larger for larger logits and, among equal logits, for lower tokens. 0 marks no token."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.uint32, bitcast=True)  # -0.0 equals 0.0
    bits = tl.where(logits == logits, bits, 0x7FC00000).to(tl.uint32)  # NaN sorts first
    ordered = bits ^ tl.where(bits >> 31 == 1, 0xFFFFFFFF, 0x80000000).to(tl.uint32)
    return (ordered.to(tl.int64) << _TOKEN_BITS) | (tokens ^ _TOKENS).to(tl.int64)


@triton.jit
def _logits_of(keys):
    ordered = (keys >> _TOKEN_BITS).to(tl.uint32)
    bits = ordered ^ tl.where(ordered >> 31 == 1, 0x80000000, 0xFFFFFFFF).to(tl.uint32)
    return tl.where(keys == 0, float("-inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def _store_largest(keys, to):
    """Store the keys of the K largest logits in their present order. Among equal logits the first ones are kept.

    The K-th largest logit is found bit by bit: 32 counts cost a fraction of a sort.
    """
    ordered = (keys >> _TOKEN_BITS).to(tl.uint32)
    least = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        larger = tl.sum((ordered >= (least | bit)).to(tl.int32), axis=0)
        least = tl.where(larger >= _K, least | bit, least)
        bit = bit >> 1
    above = ordered > least
    equal = (ordered == least).to(tl.int32)
    taken = tl.sum(above.to(tl.int32), axis=0)
    kept = above | ((equal == 1) & (tl.cumsum(equal, axis=0) + taken <= _K))
    tl.store(to + tl.cumsum(kept.to(tl.int32), axis=0) - 1, keys, mask=kept)


@triton.jit
def list_kernel(logits, temperature, lists, sums, width, length, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """List the top logits of every BLOCK tokens at each sequence's last position. Grid (ceil(width / BLOCK), B).

    Args:
        logits: float32 [B, length, width].
        temperature: float32 []; at 0 the kernel does nothing.
        lists: output, int64 [B, ceil(width / BLOCK), K].
        sums: output, float32 [B, ceil(width / BLOCK), 2], the largest logits and the sums.
        width: vocabulary size, at most 2^24.
        length: positions with logits.
        BLOCK: tokens per list, a power of two, at least K. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    heat = tl.load(temperature)
    if heat > 0:
        sequence = tl.program_id(1).to(tl.int64)
        here = sequence * tl.num_programs(0) + tl.program_id(0)
        tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        is_token = tokens < width
        row = logits + ((sequence + 1) * length - 1) * width
        values = tl.load(row + tokens, mask=is_token, other=float("-inf"))
        largest = tl.max(values, axis=0)
        tl.store(sums + 2 * here, largest)
        weights = tl.where(values > float("-inf"), tl.exp((values - largest) / heat), 0.0)
        tl.store(sums + 2 * here + 1, tl.sum(weights, axis=0))
        _store_largest(tl.where(is_token, _keys_of(values, tokens), 0), lists + here * _K)


@triton.jit
def merge_kernel(lists, sums, temperature, next_lists, next_sums, count, LISTS: tl.constexpr, PDL: tl.constexpr):
    """Merge LISTS lists into one. Grid (ceil(count / LISTS), B).

    Args:
        lists: int64 [B, count, K].
        sums: float32 [B, count, 2].
        temperature: float32 []; at 0 the kernel does nothing.
        next_lists: output, int64 [B, ceil(count / LISTS), K].
        next_sums: output, float32 [B, ceil(count / LISTS), 2].
        count: lists per sequence.
        LISTS: a power of two. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    heat = tl.load(temperature)
    if heat > 0:
        sequence = tl.program_id(1).to(tl.int64)
        here = sequence * tl.num_programs(0) + tl.program_id(0)
        first = tl.program_id(0) * LISTS
        places = first * _K + tl.arange(0, LISTS * _K)
        keys = tl.load(lists + sequence * count * _K + places, mask=places < count * _K, other=0)
        numbers = first + tl.arange(0, LISTS)
        pairs = sums + 2 * (sequence * count + numbers)
        peaks = tl.load(pairs, mask=numbers < count, other=float("-inf"))
        parts = tl.load(pairs + 1, mask=numbers < count, other=0.0)
        largest = tl.max(peaks, axis=0)
        tl.store(next_sums + 2 * here, largest)
        scales = tl.where(peaks > float("-inf"), tl.exp((peaks - largest) / heat), 0.0)
        tl.store(next_sums + 2 * here + 1, tl.sum(parts * scales, axis=0))
        _store_largest(keys, next_lists + here * _K)


@triton.jit
def order_kernel(lists, sums, temperature, candidates, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Sort a list into the operator's output. Grid (1, B).

    Args:
        lists: int64 [B, K].
        sums: float32 [B, 2].
        temperature: float32 []; at 0 only the sum is written, as 0.
        candidates: output, float32 [B, 1 + 2 K]: the sum, the logits, the tokens. Beyond the vocabulary they are -inf
            and -1.
        BLOCK: K. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    heat = tl.load(temperature)
    sequence = tl.program_id(1).to(tl.int64)
    row = candidates + sequence * (1 + 2 * BLOCK)
    if heat > 0:
        places = tl.arange(0, BLOCK)
        keys = tl.load(lists + sequence * BLOCK + places)
        others = tl.load(lists + sequence * BLOCK + places)[:, None]
        is_before = (others > keys[None, :]) | ((others == keys[None, :]) & (places[:, None] < places[None, :]))
        rank = tl.sum(is_before.to(tl.int32), axis=0)
        token = tl.where(keys == 0, -1, (keys & _TOKENS).to(tl.int32) ^ _TOKENS)
        tl.store(row, tl.load(sums + 2 * sequence + 1))
        tl.store(row + 1 + rank, _logits_of(keys))
        tl.store(row + 1 + BLOCK + rank, token.to(tl.float32))
    else:
        tl.store(row, 0.0)
