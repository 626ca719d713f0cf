"""GPTQ (arXiv 2210.17323) of one matrix: each column rounded so that it makes up for those rounded before it.

It minimises the error of the products, trace((W - Q) H (W - Q)^T) with H the inputs' second moments, column by column.
QuIP (arXiv 2307.13304, equation 2 and theorem 6) finds the paper's columns without its inverse. Here the last column
comes first, which makes the factor a plain Cholesky one: with H = L D L^T, L unit lower triangular,
Q_k = round(W_k + (W - Q)_{>k} L_{>k,k}).

No library is used: those that hold GPTQ (gptqmodel, llm-compressor, neural-compressor) patch models they know and
write layouts of their own, and ONNX Runtime's runs the whole float32 graph again for every input of a product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from liger_export.precision import Scheme
from liger_export.quantize.blocks import Blocks, pack

__all__ = ["Inputs", "quantize_matrix"]

DAMPING = 0.01  # of the mean diagonal, as in section 3.3 of the paper
STRONGER = 10  # times the damping, as long as rounding leaves the moments not positive definite
CLIPS = tuple(1 - 0.03 * step for step in range(11))  # shares of a block's range that its integers may cover


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a product reads, as far as rounding its weights goes.

    Attributes:
        importance: diagonal of H, the damped second moments, [in].
        lower: L of H = L D L^T, unit lower triangular, [in, in].
    """

    importance: Tensor
    lower: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> "Inputs":
        """From the sum of x x^T over the inputs x, [in, in], which is overwritten."""
        diagonal = moments.diagonal()
        damping = DAMPING * float(diagonal.mean()) or 1.0  # inputs that are all zero: any rounding will do
        while True:
            diagonal += damping
            importance = diagonal.clone()
            lower, failed = torch.linalg.cholesky_ex(moments)
            if not failed:
                return cls(importance, lower.div_(lower.diagonal().clone()))
            damping *= STRONGER


def quantize_matrix(weight: Tensor, inputs: Inputs, scheme: Scheme) -> Blocks:
    """Round a matrix, or some rows of it: rows do not depend on each other.

    Columns are not sorted, so that blocks stay contiguous. A block's scale is set when its last column is reached.

    Args:
        weight: [out, in], in a multiple of the block size; left as it is.
        inputs: what the matrix is multiplied with.
        scheme: bits, block size, zero points or none.
    """
    rows, columns = weight.shape
    errors = torch.zeros_like(weight)  # W - Q, so far
    integers = torch.empty(rows, columns, dtype=torch.uint8)
    scales = torch.empty(rows, scheme.blocks(columns))
    zero_points = torch.empty(rows, scheme.blocks(columns), dtype=torch.uint8)
    for index in reversed(range(scheme.blocks(columns))):
        start, stop = index * scheme.block_size, (index + 1) * scheme.block_size
        target = weight[:, start:stop] + errors[:, stop:] @ inputs.lower[stop:, start:stop]
        scale, zero = _choose_grid(target, scheme, inputs.importance[start:stop])
        scales[:, index], zero_points[:, index] = scale, zero
        for column in reversed(range(start, stop)):
            within = column - start
            rounded = _round(target[:, within], scale, zero, scheme)
            integers[:, column] = rounded
            errors[:, column] = weight[:, column] - scale * (rounded - zero)
            target[:, :within].addr_(errors[:, column], inputs.lower[column, start:column])
    packed_zeros = None if scheme.symmetric else pack(zero_points.numpy(), scheme.bits)
    return Blocks(pack(integers.numpy(), scheme.bits), scales.float().numpy(), packed_zeros)


def _round(values: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """The nearest integers, as floating-point numbers."""
    return (values / scale + zero).round_().clamp_(0, 2**scheme.bits - 1)


def _choose_grid(block: Tensor, scheme: Scheme, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point for each row of a block: of ``CLIPS``, that with the least squared error.

    Args:
        block: weights, [out, block size].
        scheme: bits, and whether the zero point is fixed.
        importance: weight of each column's error, [block size].

    Returns:
        Both [out].
    """
    low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
    least = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for clip in CLIPS:
        tried, tried_zero = _grid(low * clip, high * clip, scheme)
        rounded = _round(block, tried[:, None], tried_zero[:, None], scheme)
        error = (block - tried[:, None] * (rounded - tried_zero[:, None])).square() @ importance
        better = error < least
        scale, zero = torch.where(better, tried, scale), torch.where(better, tried_zero, zero)
        least = torch.minimum(least, error)
    return scale, zero


def _grid(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """ONNX Runtime's own grid for a range; if symmetric, the value farthest from zero is the lowest integer."""
    if scheme.symmetric:
        zero = torch.full_like(low, scheme.fixed_zero_point)
        scale = torch.where(high > -low, high, low) / -scheme.fixed_zero_point
        return torch.where(scale == 0, 1, scale), zero
    scale = (high - low) / (2**scheme.bits - 1)
    scale = torch.where(scale == 0, 1, scale)
    return scale, (-low / scale).round()
