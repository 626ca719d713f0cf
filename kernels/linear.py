"""Linear layers for few tokens, fused with normalization, bias, gate and residual. Each weight is read once.

RMSNorm is applied before the product; bias, gated SiLU and residual after it, so that a decoder layer is four of these
kernels and its attention. A program owns some rows of the weight with all of their columns. It keeps the token's
activations in registers and loads the next block of rows while it multiplies the current one. With programmatic
dependent launch (``PDL``) it loads its first weights before it waits for its activations.
"""

import triton
import triton.language as tl

from liger_export.kernels.dependent_launch import wait_for_activations

__all__ = ["integer_linear_kernel", "linear_kernel"]

FLAGS = ("has_norm", "has_zero_points", "has_bias", "has_residual")
DENSE = tl.constexpr(16)  # bits of a weight that is not quantized
ROUND = tl.constexpr(1.5 * 2**23)
ROUND_BITS = tl.constexpr(0x4B400000)
WORDS = tl.constexpr(4)  # of integers summed before a scale is applied: one load of a thread


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
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Linear layer with a weight in the activations' dtype. Grid (programs, tokens), for any number of programs.

    Args:
        hidden: [tokens, in_features].
        norm_weight: [in_features], weight of RMSNorm (arXiv 1910.07467, eq. 4), applied if has_norm.
        weight: [out_features, in_features]; if GATED [2 * out_features, in_features], gate and up (arXiv 2002.05202,
            eq. 5).
        bias: one value per row of the weight, added if has_bias.
        residual: [tokens, out_features], added if has_residual.
        output: [tokens, out_features].
        in_features: a multiple of 16. out_features: rows of the result.
        epsilon: of RMSNorm.
        BLOCK_N: rows per iteration. BLOCK_K: in_features rounded up to a power of two.
        EVEN: in_features equals BLOCK_K.
        GATED: the result is silu(gate) * up.
        PDL: use programmatic dependent launch.
    """
    norm = (norm_weight, epsilon, has_norm)
    around = (bias, residual, has_bias, has_residual)
    sizes = (in_features, out_features)
    _layer(hidden, norm, (weight,), around, output, sizes, DENSE, 0, BLOCK_N, BLOCK_K, EVEN, GATED, PDL, True)


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
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Linear layer with a quantized weight in the layout of ONNX Runtime's MatMulNBits.

    Activations are rounded to 8-bit integers. With 4-bit weights 32 of them share a scale, with 8-bit weights 16.
    Arguments as for ``linear_kernel``, except:

    Args:
        words: int32 [rows, in_features * BITS / 32], the first integer in the lowest bits.
        scales: [rows, in_features / GROUP].
        zero_points: uint8 [rows, ceil(in_features / GROUP * BITS / 8)], read if has_zero_points. Otherwise all zero
            points are 2 ** (BITS - 1).
        BITS: 4 or 8. GROUP: columns per scale, a multiple of 32.
        NATIVE: compiled for a GPU, not interpreted.
    """
    norm = (norm_weight, epsilon, has_norm)
    weight = (words, scales, zero_points, has_zero_points)
    around = (bias, residual, has_bias, has_residual)
    sizes = (in_features, out_features)
    _layer(hidden, norm, weight, around, output, sizes, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN, GATED, PDL, NATIVE)


@triton.jit
def _layer(
    hidden,
    norm,
    weight,
    around,
    output,
    sizes,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Body of both kernels, with their arguments as tuples."""
    in_features, out_features = sizes
    token = tl.program_id(1).to(tl.int64)
    each = tl.cdiv(tl.cdiv(out_features, BLOCK_N), tl.num_programs(0)) * BLOCK_N
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, out_features)
    lanes = tl.arange(0, BLOCK_N)
    # Rows past the end repeat the last row, which is cheaper than a mask.
    n = tl.minimum(first + lanes, last - 1)
    rows = _rows(weight, n, in_features, BITS, GROUP, BLOCK_K, EVEN)
    up_rows = rows
    if GATED:
        up_rows = _rows(weight, n + out_features, in_features, BITS, GROUP, BLOCK_K, EVEN)
    wait_for_activations(PDL)
    activations, root = _activations(hidden + token * in_features, norm, in_features, BITS, BLOCK_K)
    for start in range(first, last - BLOCK_N, BLOCK_N):
        n = start + lanes
        added = _added(around, n, last, token, out_features, GATED)
        following = tl.minimum(n + BLOCK_N, last - 1)
        next_rows = _rows(weight, following, in_features, BITS, GROUP, BLOCK_K, EVEN)
        result = _product(rows, activations, BITS, NATIVE)
        rows, next_up_rows, up = next_rows, next_rows, result
        if GATED:
            next_up_rows = _rows(weight, following + out_features, in_features, BITS, GROUP, BLOCK_K, EVEN)
            up = _product(up_rows, activations, BITS, NATIVE)
        up_rows = next_up_rows
        _store(result * root, up * root, added, n, last, token, output, out_features, GATED)
    # The last block has no next one to load. A program without rows stores nothing.
    n = first + tl.maximum(last - first - 1, 0) // BLOCK_N * BLOCK_N + lanes
    added = _added(around, n, last, token, out_features, GATED)
    result = _product(rows, activations, BITS, NATIVE)
    up = result
    if GATED:
        up = _product(up_rows, activations, BITS, NATIVE)
    _store(result * root, up * root, added, n, last, token, output, out_features, GATED)


@triton.jit
def _activations(hidden, norm, in_features, BITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return activations times RMSNorm's weight for ``_product``, and the inverse root mean square, or 1."""
    norm_weight, epsilon, has_norm = norm
    if BITS == DENSE:
        k = tl.arange(0, BLOCK_K)
    else:
        columns: tl.constexpr = WORDS * 32 // BITS
        k = tl.arange(0, BLOCK_K // columns)[:, None] * columns + tl.arange(0, columns)[None, :]
    values = tl.load(hidden + k, mask=k < in_features, other=0.0).to(tl.float32)
    weights = tl.load(norm_weight + k, mask=k < in_features * has_norm, other=1.0).to(tl.float32)
    mean = tl.sum(tl.ravel(values * values), axis=0) / in_features
    root = tl.where(has_norm > 0, tl.rsqrt(mean + epsilon), 1.0)
    if BITS == DENSE:
        activations = ((values * weights)[None, :],)
    else:
        activations = _rounded(values * weights, BITS)
    return activations, root


@triton.jit
def _added(around, n, last, token, out_features, GATED: tl.constexpr):
    """Load the bias of rows n (of gate, if GATED), the bias of up, and the residual."""
    bias, residual, has_bias, has_residual = around
    shift = tl.load(bias + n, mask=n < last * has_bias, other=0.0).to(tl.float32)
    up_shift = shift
    if GATED:
        up_shift = tl.load(bias + out_features + n, mask=n < last * has_bias, other=0.0).to(tl.float32)
    place = token * out_features + n
    return shift, up_shift, tl.load(residual + place, mask=n < last * has_residual, other=0.0).to(tl.float32)


@triton.jit
def _store(result, up, added, n, last, token, output, out_features, GATED: tl.constexpr):
    shift, up_shift, residual = added
    result += shift
    if GATED:
        result = result / (1 + tl.exp(-result)) * (up + up_shift)
    result = (result + residual).to(output.dtype.element_ty)
    tl.store(output + token * out_features + n, result, mask=n < last)


@triton.jit
def _rows(weight, n, in_features, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr):
    """Load rows n of the weight, as ``_product`` takes them."""
    n = n[:, None].to(tl.int64)
    if BITS == DENSE:
        k = tl.arange(0, BLOCK_K)[None, :]
        place = weight[0] + n * in_features + k
        if EVEN:
            rows = (tl.load(place),)
        else:
            rows = (tl.load(place, mask=k < in_features, other=0.0),)
    else:
        rows = _integer_rows(weight, n, in_features, BITS, GROUP, BLOCK_K, EVEN)
    return rows


@triton.jit
def _integer_rows(
    weight, n, in_features, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr
):
    """Load words, int32 [N, BLOCK_K * BITS / 32], and the scale and zero point of every ``WORDS`` of them."""
    words, scales, zero_points, has_zero_points = weight
    blocks = in_features // GROUP
    row_words = blocks * (GROUP * BITS // 32)  # written so that the compiler sees that rows are aligned to 16 bytes
    word = tl.arange(0, BLOCK_K * BITS // 32)[None, :]
    block = tl.arange(0, BLOCK_K * BITS // (32 * WORDS))[None, :] * (32 * WORDS // BITS) // GROUP
    word_place, scale_place = words + n * row_words + word, scales + n * blocks + block
    if EVEN:
        tile, scale = tl.load(word_place), tl.load(scale_place)
    else:
        tile = tl.load(word_place, mask=word < row_words, other=0)
        scale = tl.load(scale_place, mask=block < blocks, other=0.0)
    zero_place = zero_points + n * ((blocks * BITS + 7) // 8) + block * BITS // 8
    middle: tl.constexpr = 0x88 if BITS == 4 else 0x80
    zero_point = tl.load(zero_place, mask=block < blocks * has_zero_points, other=middle).to(tl.int32)
    if BITS == 4:
        zero_point = (zero_point >> (4 * (block % 2))) & 0xF
    return tile, scale, zero_point


@triton.jit
def _product(rows, activations, BITS: tl.constexpr, NATIVE: tl.constexpr):
    """Multiply rows by activations. Returns float32 [N]."""
    if BITS == DENSE:
        total = tl.sum(rows[0].to(tl.float32) * activations[0], axis=1)
    else:
        total = _integer_product(rows, activations, BITS, NATIVE)
    return total


@triton.jit
def _integer_product(rows, activations, BITS: tl.constexpr, NATIVE: tl.constexpr):
    """Sum scale * (integer - zero_point) * activation over each row."""
    tile, scale, zero_point = rows
    lower, upper, activation_scale, activation_total = activations
    none = tl.zeros(tile.shape, tl.int32)
    if BITS == 4:
        dot = _dot_bytes(tile & 0x0F0F0F0F, lower, none, NATIVE)
        dot = _dot_bytes((tile >> 4) & 0x0F0F0F0F, upper, dot, NATIVE)
    else:
        dot = _dot_bytes(tile, lower, none, NATIVE)
    dot = tl.sum(tl.reshape(dot, (tile.shape[0], tile.shape[1] // WORDS, WORDS)), axis=2).to(tl.float32)
    dot -= zero_point.to(tl.float32) * activation_total
    return tl.sum(scale.to(tl.float32) * activation_scale * dot, axis=1)


@triton.jit
def _dot_bytes(unsigned, signed, total, NATIVE: tl.constexpr):
    """Add the dot product of two words' four bytes to ``total``: one instruction on a GPU."""
    if NATIVE:
        total = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [unsigned, signed, total], tl.int32, is_pure=True, pack=1
        )
    else:
        for index in tl.static_range(4):
            total += ((unsigned >> (8 * index)) & 0xFF) * ((signed << (24 - 8 * index)) >> 24)
    return total


@triton.jit
def _rounded(values, BITS: tl.constexpr):
    """Quantize activations [SUMS, WORDS * 32 / BITS] to 8-bit integers with one scale per row.

    Returns:
        lower, upper: int32 [1, SUMS * WORDS], the integers that pair with the low and high halves of the weights' bytes
            if BITS is 4; the same values twice if BITS is 8.
        scale: float32 [1, SUMS].
        total: float32 [1, SUMS], the sum of each row's integers.
    """
    scale = tl.max(tl.abs(values), axis=1) / 127
    inverse = tl.where(scale > 0, 1 / scale, 0.0)
    # Adding ROUND leaves the rounded integer in the lowest bits of the sum: faster than floor and a conversion.
    integers = (values * inverse[:, None] + ROUND).to(tl.int32, bitcast=True)
    total = tl.sum(integers - ROUND_BITS, axis=1).to(tl.float32)
    words: tl.constexpr = values.shape[0] * WORDS
    if BITS == 4:
        lower, upper = tl.split(tl.reshape(integers, (words, 4, 2)))
        lower, upper = _packed(lower), _packed(upper)
    else:
        lower = _packed(tl.reshape(integers, (words, 4)))
        upper = lower
    return lower[None, :], upper[None, :], scale[None, :], total[None, :]


@triton.jit
def _packed(integers):
    """Pack four integers [N, 4] into the bytes of a word [N]."""
    return tl.sum((integers & 0xFF) << (8 * tl.arange(0, 4))[None, :], axis=1)
