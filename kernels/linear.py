"""Linear layers of few tokens on a GPU: a product that reads each weight once, with what stands around it.

RMS normalisation comes before the product, bias, residual and the gated SiLU behind it, so that a decoder layer is four
of these and its attention. A program owns some rows of the weight and all of their columns. Where the GPU can begin a
kernel before the one before has ended (``PDL``), it asks for its first weights before it waits for its activations.
"""

import triton
import triton.language as tl

from liger_export.kernels.overlap import wait_for_activations

__all__ = ["integer_linear_kernel", "linear_kernel"]

FLAGS = ("has_norm", "has_zero_points", "has_bias", "has_residual")
ROUND = tl.constexpr(1.5 * 2**23)
ROUND_BITS = tl.constexpr(0x4B400000)
SUM = tl.constexpr(32)  # columns that are summed before a scale is looked up: the smallest block


@triton.jit
def _columns(hidden, norm_weight, k, in_features, has_norm):
    """Activations of columns k and their squares, float32; the first multiplied by the normalisation's weight."""
    is_column = k < in_features
    values = tl.load(hidden + k, mask=is_column, other=0.0).to(tl.float32)
    weights = tl.load(norm_weight + k, mask=k < in_features * has_norm, other=1.0).to(tl.float32)
    return values * weights, values * values


@triton.jit
def _finish(
    total,
    up,
    squares,
    n,
    token,
    bias,
    residual,
    output,
    in_features,
    out_features,
    epsilon,
    has_norm,
    has_bias,
    has_residual,
    GATED: tl.constexpr,
):
    """Divide by the root mean square, add, gate and store rows n of a token."""
    root = tl.where(has_norm > 0, tl.rsqrt(squares / in_features + epsilon), 1.0)
    is_row = n < out_features
    adds_bias = n < out_features * has_bias
    result = total * root + tl.load(bias + n, mask=adds_bias, other=0.0).to(tl.float32)
    if GATED:
        up = up * root + tl.load(bias + out_features + n, mask=adds_bias, other=0.0).to(tl.float32)
        result = result / (1 + tl.exp(-result)) * up
    place = token * out_features + n
    result += tl.load(residual + place, mask=n < out_features * has_residual, other=0.0).to(tl.float32)
    tl.store(output + place, result.to(output.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=FLAGS)
def linear_kernel(
    hidden,
    norm_weight,
    weight,
    bias,
    residual,
    output,
    in_features,
    out_features,
    epsilon,
    has_norm,
    has_bias,
    has_residual,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One product with a weight as it is. Grid (ceil(out_features / BLOCK_N), tokens).

    Args:
        hidden: [tokens, in_features].
        norm_weight: [in_features], of RMSNorm (arXiv 1910.07467, eq. 4) if has_norm.
        weight: [out_features, in_features]; if GATED twice as many rows, gate and up (arXiv 2002.05202, eq. 5).
        bias: as many values as weight has rows, added if has_bias.
        residual: [tokens, out_features], added if has_residual.
        output: [tokens, out_features].
        in_features: multiple of 16; out_features: rows of the result.
        epsilon: of RMSNorm.
        BLOCK_N: rows of a program; BLOCK_K: columns read at a time.
        GATED: the result is silu(gate) * up.
        PDL: begin before the kernel before has ended.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, BLOCK_K)
    is_row = (n < out_features)[:, None]
    tile = weight + n[:, None].to(tl.int64) * in_features + lanes[None, :]
    up_tile = tile + out_features.to(tl.int64) * in_features
    weights = tl.load(tile, mask=is_row & (lanes < in_features)[None, :], other=0.0)
    if GATED:
        up_weights = tl.load(up_tile, mask=is_row & (lanes < in_features)[None, :], other=0.0)
    wait_for_activations(PDL)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, in_features, BLOCK_K):
        is_next = is_row & (start + BLOCK_K + lanes < in_features)[None, :]
        next_weights = tl.load(tile + start + BLOCK_K, mask=is_next, other=0.0)
        if GATED:
            next_up_weights = tl.load(up_tile + start + BLOCK_K, mask=is_next, other=0.0)
        values, squared = _columns(hidden + token * in_features, norm_weight, start + lanes, in_features, has_norm)
        squares += squared
        total += weights.to(tl.float32) * values[None, :]
        weights = next_weights
        if GATED:
            up += up_weights.to(tl.float32) * values[None, :]
            up_weights = next_up_weights
    _finish(
        tl.sum(total, axis=1),
        tl.sum(up, axis=1),
        tl.sum(squares, axis=0),
        n,
        token,
        bias,
        residual,
        output,
        in_features,
        out_features,
        epsilon,
        has_norm,
        has_bias,
        has_residual,
        GATED,
    )


@triton.jit
def _rounded(values, BITS: tl.constexpr, SIZE: tl.constexpr):
    """Activations [SIZE] as 8-bit integers that share a scale along ``SUM`` columns.

    Returns:
        packed: int32 [SIZE * BITS / 32] twice: what meets the lower and the upper half of the bytes of each word of
            4-bit integers; with 8 bits the same twice.
        scale: float32 [SIZE / SUM].
        total: of each block's integers, float32 [SIZE / SUM].
    """
    blocks = tl.reshape(values, (SIZE // SUM, SUM))
    scale = tl.max(tl.abs(blocks), axis=1) / 127
    inverse = tl.where(scale > 0, 1 / scale, 0.0)
    # Added to ROUND, a small number is an integer in the lowest bits of the sum: floor and conversion are slow.
    integers = (blocks * inverse[:, None] + ROUND).to(tl.int32, bitcast=True)
    total = tl.sum(integers - ROUND_BITS, axis=1).to(tl.float32)
    if BITS == 4:
        lower, upper = tl.split(tl.reshape(integers, (SIZE // 8, 4, 2)))
        lower, upper = _packed(lower), _packed(upper)
    else:
        lower = _packed(tl.reshape(integers, (SIZE // 4, 4)))
        upper = lower
    return lower, upper, scale, total


@triton.jit
def _packed(integers):
    """Four integers [N, 4] as the bytes of a word [N]."""
    return tl.sum((integers & 0xFF) << (8 * tl.arange(0, 4))[None, :], axis=1)


@triton.jit
def _dot_bytes(unsigned, signed, total, NATIVE: tl.constexpr):
    """total + the products of two words' bytes, one instruction on a GPU."""
    if NATIVE:
        total = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [unsigned, signed, total], tl.int32, is_pure=True, pack=1
        )
    else:
        for index in tl.static_range(4):
            total += ((unsigned >> (8 * index)) & 0xFF) * ((signed << (24 - 8 * index)) >> 24)
    return total


@triton.jit
def _columns_of(
    words,
    scales,
    zero_points,
    n,
    is_row,
    start,
    in_features,
    has_zero_points,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Columns from ``start`` on of rows n: words int32 [N, BLOCK_K * BITS / 32], scale and zero point of each SUM."""
    word = start * BITS // 32 + tl.arange(0, BLOCK_K * BITS // 32)
    row_words = in_features * BITS // 32
    place = n.to(tl.int64)[:, None] * row_words + word[None, :]
    tile = tl.load(words + place, mask=is_row & (word < row_words)[None, :], other=0)
    block = (start + tl.arange(0, BLOCK_K // SUM) * SUM) // GROUP
    blocks = in_features // GROUP
    scale = tl.load(scales + n[:, None] * blocks + block[None, :], mask=is_row & (block < blocks)[None, :], other=0.0)
    is_stored = is_row & (block < blocks * has_zero_points)[None, :]
    if BITS == 4:
        place = n[:, None] * ((blocks + 1) // 2) + (block // 2)[None, :]
        zero_point = tl.load(zero_points + place, mask=is_stored, other=0x88)
        zero_point = (zero_point.to(tl.int32) >> (4 * (block % 2))[None, :]) & 0xF
    else:
        zero_point = tl.load(zero_points + n[:, None] * blocks + block[None, :], mask=is_stored, other=0x80)
    return tile, scale, zero_point


@triton.jit
def _product(tile, scale, zero_point, activations, BITS: tl.constexpr, NATIVE: tl.constexpr):
    """scale * sum((integer - zero_point) * activation) over ``SUM`` columns each, [N, SUMS]."""
    lower, upper, activation_scale, activation_total = activations
    none = tl.zeros(tile.shape, tl.int32)
    if BITS == 4:
        dot = _dot_bytes(tile & 0x0F0F0F0F, lower[None, :], none, NATIVE)
        dot = _dot_bytes((tile >> 4) & 0x0F0F0F0F, upper[None, :], dot, NATIVE)
    else:
        dot = _dot_bytes(tile, lower[None, :], none, NATIVE)
    each: tl.constexpr = SUM * BITS // 32
    dot = tl.sum(tl.reshape(dot, (tile.shape[0], tile.shape[1] // each, each)), axis=2).to(tl.float32)
    dot -= zero_point.to(tl.float32) * activation_total[None, :]
    return scale.to(tl.float32) * activation_scale[None, :] * dot


@triton.jit(do_not_specialize=FLAGS)
def integer_linear_kernel(
    hidden,
    norm_weight,
    words,
    scales,
    zero_points,
    bias,
    residual,
    output,
    in_features,
    out_features,
    epsilon,
    has_norm,
    has_zero_points,
    has_bias,
    has_residual,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """As ``linear_kernel``, with a weight of integers as ONNX Runtime's MatMulNBits stores them.

    Args:
        words: int32 [rows, in_features * BITS / 32], the first integer in the lowest bits.
        scales: [rows, in_features / GROUP].
        zero_points: uint8 [rows, ceil(in_features / GROUP * BITS / 8)], read if has_zero_points; else they are
            2 ** (BITS - 1).
        BITS: 4 or 8. GROUP: columns of a scale, a multiple of 32.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1).to(tl.int64)
    is_row = (n < out_features)[:, None]
    tile, scale, zero = _columns_of(
        words, scales, zero_points, n, is_row, 0, in_features, has_zero_points, BITS, GROUP, BLOCK_K
    )
    up_n = n + out_features
    if GATED:
        up_tile, up_scale, up_zero = _columns_of(
            words, scales, zero_points, up_n, is_row, 0, in_features, has_zero_points, BITS, GROUP, BLOCK_K
        )
    wait_for_activations(PDL)
    total = tl.zeros((BLOCK_N, BLOCK_K // SUM), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_K // SUM), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, in_features, BLOCK_K):
        after = start + BLOCK_K
        next_tile, next_scale, next_zero = _columns_of(
            words, scales, zero_points, n, is_row, after, in_features, has_zero_points, BITS, GROUP, BLOCK_K
        )
        if GATED:
            next_up_tile, next_up_scale, next_up_zero = _columns_of(
                words, scales, zero_points, up_n, is_row, after, in_features, has_zero_points, BITS, GROUP, BLOCK_K
            )
        k = start + tl.arange(0, BLOCK_K)
        values, squared = _columns(hidden + token * in_features, norm_weight, k, in_features, has_norm)
        squares += squared
        activations = _rounded(values, BITS, BLOCK_K)
        total += _product(tile, scale, zero, activations, BITS, NATIVE)
        tile, scale, zero = next_tile, next_scale, next_zero
        if GATED:
            up += _product(up_tile, up_scale, up_zero, activations, BITS, NATIVE)
            up_tile, up_scale, up_zero = next_up_tile, next_up_scale, next_up_zero
    _finish(
        tl.sum(total, axis=1),
        tl.sum(up, axis=1),
        tl.sum(squares, axis=0),
        n,
        token,
        bias,
        residual,
        output,
        in_features,
        out_features,
        epsilon,
        has_norm,
        has_bias,
        has_residual,
        GATED,
    )
