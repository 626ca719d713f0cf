"""Kernels of the CUDA graph outside attention, linear layers for few tokens, and top logits."""

import math

import triton
import triton.language as tl

from liger_export.config import TURN
from liger_export.kernels.dependent_launch import wait_for_activations
from liger_export.kernels.plans import BUNDLE_NAMES

__all__ = [
    "angles_kernel",
    "argmax_kernel",
    "begin_kernel",
    "best_of_parts_kernel",
    "count_kernel",
    "dequantize_kernel",
    "gated_silu_kernel",
    "rms_norm_kernel",
]

_TURN = tl.constexpr(TURN)
_RADIANS = tl.constexpr(2 * math.pi / TURN)


@triton.jit
def gated_silu_kernel(rows, gated, width, BLOCK: tl.constexpr):
    """silu(gate) * up (arXiv 2002.05202). Grid (ceil(width / BLOCK), N).

    Args:
        rows: [N, 2 * width], gate and up.
        gated: output, [N, width].
        width: columns of the result.
        BLOCK: columns per program.
    """
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    is_column = columns < width
    gate = tl.load(rows + row * 2 * width + columns, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(rows + row * 2 * width + width + columns, mask=is_column, other=0.0).to(tl.float32)
    result = gate / (1 + tl.exp(-gate)) * up
    tl.store(gated + row * width + columns, result.to(gated.dtype.element_ty), mask=is_column)


@triton.jit
def best_of_parts_kernel(logits, values, indices, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Find the first largest logit in each part of each row. Grid (ceil(width / BLOCK), N).

    NaN counts as infinity.

    Args:
        logits: float32 [N, width].
        values: output, float32 [N, parts] with parts = ceil(width / BLOCK).
        indices: output, int32 [N, parts], positions in the row.
        width: vocabulary size.
        BLOCK: logits per part. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lanes = part * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(logits + row * width + lanes, mask=lanes < width, other=float("-inf"))
    found = tl.where(found == found, found, float("inf"))
    best = tl.max(found, axis=0)
    place = row * tl.num_programs(0) + part
    tl.store(values + place, best)
    tl.store(indices + place, tl.min(tl.where(found == best, lanes, width), axis=0))


@triton.jit(repr=lambda _: BUNDLE_NAMES["argmax_kernel"])
def argmax_kernel(values, indices, chosen, parts, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Index of the first largest logit of each row, from the results of ``best_of_parts_kernel``. Grid (N,).

    -1 if the largest logit is infinite or one is NaN.

    Args:
        values: float32 [N, parts].
        indices: int32 [N, parts].
        chosen: output, int64 [N].
        parts: parts per row.
        BLOCK: parts per iteration. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    row = tl.program_id(0).to(tl.int64) * parts
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    index = tl.full((BLOCK,), 2147483647, tl.int32)
    for start in range(0, parts, BLOCK):
        is_part = start + lanes < parts
        found = tl.load(values + row + start + lanes, mask=is_part, other=float("-inf"))
        where = tl.load(indices + row + start + lanes, mask=is_part, other=2147483647)
        is_better = (found > best) | ((found == best) & (where < index))
        index = tl.where(is_better, where, index)
        best = tl.where(is_better, found, best)
    largest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == largest, index, 2147483647), axis=0)
    first = tl.where(tl.abs(largest) < float("inf"), first, -1)
    tl.store(chosen + tl.program_id(0), first.to(tl.int64))


@triton.jit
def count_kernel(position_ids, counts, length, BLOCK: tl.constexpr):
    """Number of tokens in each row, without padding. Grid (B,).

    Args:
        position_ids: int64 [B, length], -1 for padding.
        counts: output, int32 [B].
        length: T.
        BLOCK: positions per iteration.
    """
    sequence = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    seen = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, length, BLOCK):
        is_inside = start + lanes < length
        positions = tl.load(position_ids + sequence * length + start + lanes, mask=is_inside, other=-1)
        seen += (positions >= 0).to(tl.int32)
    tl.store(counts + sequence, tl.sum(seen, axis=0))


@triton.jit
def angles_kernel(position_ids, turns, cos, sin, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Cosine and sine of rotary angles (arXiv 2104.09864), exact at any position. Grid (tokens,).

    Args:
        position_ids: int64 [tokens], -1 for padding, which gets some finite values.
        turns: int64 [8, width], from ``config.rotary_turns``.
        cos, sin: outputs, float32 [tokens, width].
        width: half the head size. BLOCK: at least width. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    position = tl.load(position_ids + token)
    rotations = tl.full((BLOCK,), _TURN // 2, tl.int64)
    for place in tl.static_range(8):
        row = tl.load(turns + place * width + lanes, mask=lanes < width, other=0)
        rotations += (position >> 8 * place & 255) * row
    centred = (rotations & (_TURN - 1)) - _TURN // 2
    angles = centred.to(tl.float32) * _RADIANS
    tl.store(cos + token * width + lanes, tl.cos(angles), mask=lanes < width)
    tl.store(sin + token * width + lanes, tl.sin(angles), mask=lanes < width)


@triton.jit
def rms_norm_kernel(hidden, norm_weight, output, width, epsilon, BLOCK: tl.constexpr):
    """RMSNorm of each row (arXiv 1910.07467, eq. 4). Grid (N,).

    As in the backbones, the normalized row is rounded to the activations' dtype before it is multiplied by the weight.

    Args:
        hidden: [N, width].
        norm_weight: [width].
        output: [N, width].
        width: columns.
        epsilon: added to the mean square.
        BLOCK: columns per iteration.
    """
    row = tl.program_id(0).to(tl.int64) * width
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        values = tl.load(hidden + row + start + lanes, mask=start + lanes < width, other=0.0).to(tl.float32)
        squares += values * values
    root = tl.rsqrt(tl.sum(squares, axis=0) / width + epsilon)
    for start in range(0, width, BLOCK):
        is_column = start + lanes < width
        values = tl.load(hidden + row + start + lanes, mask=is_column, other=0.0).to(tl.float32)
        weights = tl.load(norm_weight + start + lanes, mask=is_column, other=0.0).to(tl.float32)
        normed = (values * root).to(hidden.dtype.element_ty).to(tl.float32)
        tl.store(output + row + start + lanes, (normed * weights).to(output.dtype.element_ty), mask=is_column)


@triton.jit
def begin_kernel(bias, residual, output, width, has_bias, has_residual, BLOCK: tl.constexpr):
    """Initialize a product's output to bias plus residual, or zeros without them. Grid (ceil(width / BLOCK), N).

    Args:
        bias: [width], read if has_bias. residual: [N, width], read if has_residual.
        output: [N, width].
        width: columns.
        BLOCK: columns per program.
    """
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.program_id(1).to(tl.int64) * width + columns
    total = tl.load(bias + columns, mask=columns < width * has_bias, other=0.0).to(tl.float32)
    total += tl.load(residual + place, mask=columns < width * has_residual, other=0.0).to(tl.float32)
    tl.store(output + place, total.to(output.dtype.element_ty), mask=columns < width)


@triton.jit
def dequantize_kernel(
    words,
    scales,
    zero_points,
    output,
    width,
    has_zero_points,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Dequantize a weight in the layout of ONNX Runtime's MatMulNBits. Grid (ceil(width / BLOCK), N).

    Args:
        words: int32 [N, width * BITS / 32].
        scales: [N, width / GROUP].
        zero_points: uint8 [N, ceil(width / GROUP * BITS / 8)], read if has_zero_points. Otherwise all zero points are
            2 ** (BITS - 1).
        output: [N, width].
        width: columns.
        BITS: 4 or 8. GROUP: columns per scale. BLOCK: columns per program.
    """
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    is_column = columns < width
    each: tl.constexpr = 32 // BITS
    word = tl.load(words + row * (width // each) + columns // each, mask=is_column, other=0)
    block, blocks = columns // GROUP, width // GROUP
    scale = tl.load(scales + row * blocks + block, mask=is_column, other=0.0).to(tl.float32)
    zero_byte = row * ((blocks * BITS + 7) // 8) + block * BITS // 8
    middle: tl.constexpr = 0x88 if BITS == 4 else 0x80
    zero_point = tl.load(zero_points + zero_byte, mask=columns < width * has_zero_points, other=middle).to(tl.int32)
    if BITS == 4:
        zero_point = (zero_point >> (4 * (block % 2))) & 0xF
    integer = (word >> (columns % each * BITS)) & ((1 << BITS) - 1)
    number = scale * (integer - zero_point).to(tl.float32)
    tl.store(output + row * width + columns, number.to(output.dtype.element_ty), mask=is_column)
