"""Blockwise quantization of matrix rows to integers, in the layout of ONNX Runtime's operators."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

from liger_export.precision import Scheme

__all__ = ["Blocks", "block_offsets", "dequantize", "encode", "largest_value"]

BELOW_HALF = 0.49999997  # the largest float32 below 0.5: adding it and rounding down rounds halves up, and no others

Rows = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Quantized rows in the layout of MatMulNBits and GatherBlockQuantized.

    Attributes:
        packed: uint8 [N, K * bits / 8]; the first of two 4-bit integers is in the low half of the byte.
        scales: float32 [N, K / block_size].
        zero_points: uint8 [N, K / block_size * bits / 8], rounded up; None if symmetric.
    """

    packed: Bytes
    scales: Rows
    zero_points: Bytes | None


def encode(rows: Rows, scheme: Scheme, method: str) -> Blocks:
    """Quantize rows.

    Args:
        rows: float32 [N, K]; K is a multiple of the block size.
        scheme: bits, block size and zero points.
        method: a key of ``ENCODERS``.
    """
    return ENCODERS[method](rows, scheme)


def dequantize(blocks: Blocks, scheme: Scheme) -> Rows:
    """Return the values that ONNX Runtime computes with, float32 [N, K]."""
    integers = unpack(blocks.packed, scheme.bits)
    rows, columns = integers.shape
    count = scheme.blocks(columns)
    zero_points: npt.NDArray[np.float32] | float = float(scheme.fixed_zero_point)
    if blocks.zero_points is not None:
        zero_points = unpack(blocks.zero_points, scheme.bits)[:, :count, None].astype(np.float32)
    centred = integers.reshape(rows, count, scheme.block_size).astype(np.float32) - zero_points
    values: Rows = centred * blocks.scales[:, :, None]
    return values.reshape(rows, columns)


def block_offsets(blocks: Blocks, scheme: Scheme) -> Rows:
    """Offset of each block's values from scale * (integer - fixed zero point), float32 [N, K / block_size]."""
    if blocks.zero_points is None:
        return np.zeros_like(blocks.scales)
    zero_points = unpack(blocks.zero_points, scheme.bits)[:, : blocks.scales.shape[1]].astype(np.float32)
    offsets: Rows = blocks.scales * (scheme.fixed_zero_point - zero_points)
    return offsets


def largest_value(blocks: Blocks, scheme: Scheme) -> float:
    """Largest absolute value that the scales and zero points can represent; NaN or infinity if a scale is."""
    lowest: npt.NDArray[np.float32] | float = float(scheme.fixed_zero_point)  # of the integers, below the zero point
    if blocks.zero_points is not None:
        lowest = unpack(blocks.zero_points, scheme.bits)[:, : blocks.scales.shape[1]].astype(np.float32)
    steps = np.maximum(lowest, 2**scheme.bits - 1 - lowest)
    with np.errstate(over="ignore"):
        return float((abs(blocks.scales) * steps).max())


def pack(integers: Bytes, bits: int, rest: int = 0) -> Bytes:
    """Pack integers [N, K], one per byte, into [N, K * bits / 8] bytes, rounded up; ``rest`` fills half a byte."""
    if bits == 8:
        return integers
    if integers.shape[1] % 2:
        integers = np.pad(integers, ((0, 0), (0, 1)), constant_values=rest)
    pairs = np.ascontiguousarray(integers).view("<u2")  # faster than strided halves
    packed: Bytes = (pairs | pairs >> 4).astype(np.uint8)
    return packed


def unpack(packed: Bytes, bits: int) -> Bytes:
    """Invert ``pack``. A row of an odd number of 4-bit integers gets one extra integer."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _round_to_nearest(rows: Rows, scheme: Scheme) -> Blocks:
    """Round to nearest: a block's largest value, or its range, sets the scale.

    The bits are those of ONNX Runtime's quantizer (MLAS), which takes seven times as long and reads a transposed copy.
    """
    grouped = torch.from_numpy(rows).view(len(rows), -1, scheme.block_size)
    low, high = grouped.amin(2), grouped.amax(2)
    top = 2**scheme.bits - 1
    if scheme.symmetric:
        scales = torch.where(high.abs() > low.abs(), high, low) / -scheme.fixed_zero_point
        zero_points = torch.full_like(scales, scheme.fixed_zero_point)
    else:
        low, high = low.clamp_(max=0), high.clamp_(min=0)
        scales = (high - low) / top
        zero_points = torch.where(scales != 0, 0 - low / scales, low).add_(BELOW_HALF).clamp_(0, top).floor_()
    inverse = torch.where(scales != 0, scales.reciprocal(), 0)
    shifted = (grouped * inverse[:, :, None]).add_(zero_points[:, :, None]).add_(BELOW_HALF).clamp_(0, top)
    return Blocks(
        pack(_truncated(shifted.view(rows.shape)), scheme.bits),
        scales.numpy(),
        None if scheme.symmetric else pack(_truncated(zero_points), scheme.bits, scheme.fixed_zero_point),
    )


def _truncated(values: torch.Tensor) -> Bytes:
    """Convert to integers in numpy, in a fifth of PyTorch's time."""
    with np.errstate(invalid="ignore"):  # NaN, of a block whose scale has no inverse, becomes 0
        return values.numpy().astype(np.uint8)


def _k_quant(rows: Rows, scheme: Scheme) -> Blocks:
    """Quantize with ONNX Runtime's k-quant: of 20 scales, the one with the least error, weighted by magnitude.

    Its zero points are clipped, so blocks of values of one sign would become smaller, or zero. Those are rounded to
    nearest.
    """
    count, columns = rows.shape
    shape = (count, scheme.blocks(columns), scheme.block_size)
    with np.errstate(all="ignore"):  # a constant block needs no search
        searched = quant_tensor_k_quant_cpu(rows, scheme.bits, scheme.block_size)
    integers, scales, zero_points = (part.reshape(*shape[:2], -1) for part in searched)
    scales = scales.astype(np.float32)
    grouped = rows.reshape(shape)
    one_sign = (grouped.min(2) > 0) | (grouped.max(2) < 0)
    if one_sign.any():
        nearest = _round_to_nearest(rows, scheme)
        integers[one_sign] = unpack(nearest.packed, scheme.bits).reshape(shape)[one_sign]
        scales[one_sign, 0] = nearest.scales[one_sign]
        assert nearest.zero_points is not None, "k-quant has zero points"
        zero_points[one_sign, 0] = unpack(nearest.zero_points, scheme.bits)[:, : shape[1]][one_sign]
    return Blocks(
        pack(integers.astype(np.uint8).reshape(count, columns), scheme.bits),
        scales.reshape(shape[:2]),
        pack(zero_points.reshape(shape[:2]), scheme.bits),
    )


ENCODERS: dict[str, Callable[[Rows, Scheme], Blocks]] = {"rtn": _round_to_nearest, "k-quant": _k_quant}
