"""The largest logits of a vocabulary, and the sum that makes probabilities of them: what a token is chosen from.

A list is the K largest logits of some tokens, as keys in the order of the tokens. Beside it stand the largest logit and
the sum of exp((logit - largest) / temperature) over all of those tokens. Programs make lists of parts of the
vocabulary, lists are merged, many by a program, until there is one, and that is put in order.
"""

import triton
import triton.language as tl

from liger_export.kernels.overlap import wait_for_activations
from liger_export.kernels.plans import CANDIDATES

__all__ = ["list_kernel", "merge_kernel", "order_kernel"]

_K = tl.constexpr(CANDIDATES)
_TOKEN_BITS = tl.constexpr(24)
_TOKENS = tl.constexpr((1 << 24) - 1)


@triton.jit
def _keys_of(logits, tokens):
    """int64, larger for larger logits and, of equal ones, for lower tokens; above 0, which is no token's."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.uint32, bitcast=True)  # one zero
    bits = tl.where(logits == logits, bits, 0x7FC00000).to(tl.uint32)  # NaN stands first
    ordered = bits ^ tl.where(bits >> 31 == 1, 0xFFFFFFFF, 0x80000000).to(tl.uint32)
    return (ordered.to(tl.int64) << _TOKEN_BITS) | (tokens ^ _TOKENS).to(tl.int64)


@triton.jit
def _logits_of(keys):
    ordered = (keys >> _TOKEN_BITS).to(tl.uint32)
    bits = ordered ^ tl.where(ordered >> 31 == 1, 0x80000000, 0xFFFFFFFF).to(tl.uint32)
    return tl.where(keys == 0, float("-inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def _store_largest(keys, to):
    """K keys of the largest logits; of equal logits those that stand first. Their order stays.

    The K-th largest logit is found bit by bit: 32 counts cost a fraction of what sorting does.
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
    """Lists of BLOCK tokens each, after the last position of each sequence. Grid (ceil(width / BLOCK), B).

    Args:
        logits: float32 [B, length, width].
        temperature: float32 []; nothing is done at 0.
        lists: int64 [B, ceil(width / BLOCK), K].
        sums: float32 [B, ceil(width / BLOCK), 2], the largest logits and the sums.
        width: tokens of the vocabulary, at most 2^24.
        length: positions that have logits.
        BLOCK: tokens of a list, a power of two, at least K. PDL: as in ``linear``.
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
    """One list of LISTS. Grid (ceil(count / LISTS), B).

    Args:
        lists: int64 [B, count, K].
        sums: float32 [B, count, 2].
        temperature: float32 []; nothing is done at 0.
        next_lists: int64 [B, ceil(count / LISTS), K].
        next_sums: float32 [B, ceil(count / LISTS), 2].
        count: lists of a sequence.
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
    """A list in order, in the operator's form. Grid (1, B).

    Args:
        lists: int64 [B, K].
        sums: float32 [B, 2].
        temperature: float32 []; at 0 only the sum is written, as 0.
        candidates: float32 [B, 1 + 2 K]: the sum, the logits, the tokens; -inf and -1 past the vocabulary's end.
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
