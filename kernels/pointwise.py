"""What the graph for GPUs needs beside attention and products of few tokens."""

import triton
import triton.language as tl

from liger_export.kernels.overlap import wait_for_activations

__all__ = [
    "angles_kernel",
    "begin_kernel",
    "best_of_parts_kernel",
    "count_kernel",
    "dequantize_kernel",
    "gated_silu_kernel",
    "most_likely_kernel",
    "rms_norm_kernel",
]


@triton.jit
def gated_silu_kernel(rows, gated, width, BLOCK: tl.constexpr):
    """silu(gate) * up (arXiv 2002.05202). Grid (ceil(width / BLOCK), N).

    Args:
        rows: [N, 2 * width], gate and up.
        gated: [N, width].
        width: of a row of the result.
        BLOCK: columns of a program.
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
    """The first largest logit of each part of each row. Grid (ceil(width / BLOCK), N).

    Args:
        logits: float32 [N, width].
        values: float32 [N, parts], parts being ceil(width / BLOCK).
        indices: int32 [N, parts], where in the row each stands; NaN is smaller than all numbers.
        width: tokens of the vocabulary.
        BLOCK: logits of a part. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lanes = part * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(logits + row * width + lanes, mask=lanes < width, other=float("-inf"))
    found = tl.where(found == found, found, float("-inf"))
    best = tl.max(found, axis=0)
    place = row * tl.num_programs(0) + part
    tl.store(values + place, best)
    tl.store(indices + place, tl.min(tl.where(found == best, lanes, width), axis=0))


@triton.jit
def most_likely_kernel(values, indices, chosen, parts, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Index of the first largest logit of each row, from what ``best_of_parts_kernel`` found. Grid (N,).

    Args:
        values: float32 [N, parts].
        indices: int32 [N, parts].
        chosen: int64 [N].
        parts: of a row.
        BLOCK: parts compared at a time. PDL: as in ``linear``.
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
    first = tl.min(tl.where(best == tl.max(best, axis=0), index, 2147483647), axis=0)
    tl.store(chosen + tl.program_id(0), first.to(tl.int64))


@triton.jit
def count_kernel(position_ids, counts, length, BLOCK: tl.constexpr):
    """Tokens of each row, padding not counted. Grid (B,).

    Args:
        position_ids: int64 [B, length], -1 at padding.
        counts: int32 [B].
        length: T.
        BLOCK: positions counted at a time.
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
def angles_kernel(position_ids, frequencies, cos, sin, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Cosine and sine of rotary angles (arXiv 2104.09864). Grid (tokens,).

    Args:
        position_ids: int64 [tokens], -1 at padding.
        frequencies: float32 [width].
        cos: float32 [tokens, width]; sin: likewise.
        width: half a head's size. BLOCK: at least as much. PDL: as in ``linear``.
    """
    wait_for_activations(PDL)
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    position = tl.maximum(tl.load(position_ids + token), 0).to(tl.float32)
    angles = position * tl.load(frequencies + lanes, mask=lanes < width, other=0.0)
    tl.store(cos + token * width + lanes, tl.cos(angles), mask=lanes < width)
    tl.store(sin + token * width + lanes, tl.sin(angles), mask=lanes < width)


@triton.jit
def rms_norm_kernel(hidden, norm_weight, output, width, epsilon, BLOCK: tl.constexpr):
    """RMSNorm (arXiv 1910.07467, eq. 4) of each row, rounded before it is weighted, as the backbones do. Grid (N,).

    Args:
        hidden: [N, width]; output: likewise.
        norm_weight: [width].
        width: of a row.
        epsilon: added to the mean square.
        BLOCK: columns at a time.
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
    """What a product is added to: bias and residual, or zeros. Grid (ceil(width / BLOCK), N).

    Args:
        bias: [width], read if has_bias; residual: [N, width], read if has_residual.
        output: [N, width].
        width: of a row.
        BLOCK: columns of a program.
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
    """Rows of integers as MatMulNBits stores them, as numbers. Grid (ceil(width / BLOCK), N).

    Args:
        words: int32 [N, width * BITS / 32]; scales: [N, width / GROUP].
        zero_points: uint8 [N, ceil(width / GROUP * BITS / 8)], read if has_zero_points, else 2 ** (BITS - 1).
        output: [N, width].
        width: of a row.
        BITS: 4 or 8. GROUP: columns of a scale. BLOCK: columns of a program.
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
