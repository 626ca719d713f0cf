"""GPTQ (arXiv 2210.17323) for one matrix: each column compensates for the rounding errors of earlier columns.

GPTQ minimizes the error of the products, trace((W - Q) H (W - Q)^T), column by column. H is the second moment of the
inputs. QuIP (arXiv 2307.13304, equation 2 and theorem 6) computes the same columns without an inverse. Here the last
column is rounded first, so that the factor is a plain Cholesky factor: with H = L D L^T and L unit lower triangular,
Q_k = round(W_k + (W - Q)_{>k} L_{>k,k}).

Existing libraries do not fit: gptqmodel, llm-compressor and neural-compressor patch known models and write their own
layouts, and ONNX Runtime's GPTQ runs the whole float32 graph again for each matrix input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from liger_export.precision import Scheme
from liger_export.quantize.blocks import Blocks, pack

__all__ = ["Inputs", "quantize_matrix"]

DAMPING = 0.01  # relative to the mean of the diagonal, as in section 3.3 of the paper
STRONGER = 10  # factor of the damping while the moments are not numerically positive definite
CLIPS = tuple(1 - 0.03 * step for step in range(11))  # fractions of a block's range that its integers may cover


@dataclass(frozen=True, slots=True)
class Inputs:
    """Second-moment statistics of a matrix's inputs.

    Attributes:
        importance: diagonal of H, the damped second moment, [in].
        lower: unit lower triangular factor L of H = L D L^T, [in, in].
    """

    importance: Tensor
    lower: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> "Inputs":
        """Build from the sum of x x^T over the inputs x, [in, in], which is overwritten."""
        diagonal = moments.diagonal()
        damping = DAMPING * float(diagonal.mean()) or 1.0  # if all inputs are zero, any rounding is correct
        while True:
            diagonal += damping
            importance = diagonal.clone()
            lower, failed = torch.linalg.cholesky_ex(moments)
            if not failed:
                return cls(importance, lower.div_(lower.diagonal().clone()))
            damping *= STRONGER


def quantize_matrix(weight: Tensor, inputs: Inputs, scheme: Scheme) -> Blocks:
    """Round a matrix or some of its rows. Rows are independent of each other.

    Columns are not reordered, so that blocks stay contiguous. A block's scale is chosen before its last column is
    rounded.

    Args:
        weight: [out, in], not modified; ``in`` is a multiple of the block size.
        inputs: statistics of the matrix's inputs.
        scheme: bits, block size and zero points.
    """
    rows, columns = weight.shape
    errors = torch.zeros_like(weight)  # W - Q of the columns rounded so far
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
    """Round to the nearest integers, stored as floating-point numbers."""
    return (values / scale + zero).round_().clamp_(0, 2**scheme.bits - 1)


def _choose_grid(block: Tensor, scheme: Scheme, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Choose scale and zero point of each row of a block: the range of ``CLIPS`` with the least squared error.

    Args:
        block: weights, [out, block size].
        scheme: bits and zero points.
        importance: weight of each column's squared error, [block size].

    Returns:
        Scale and zero point, each [out].
    """
    low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
    least = torch.full_like(low, torch.inf)
    scale, zero = _grid(low, high, scheme)  # also where squared errors overflow
    for clip in CLIPS:
        tried, tried_zero = _grid(low * clip, high * clip, scheme)
        rounded = _round(block, tried[:, None], tried_zero[:, None], scheme)
        error = (block - tried[:, None] * (rounded - tried_zero[:, None])).square() @ importance
        better = error < least
        scale, zero = torch.where(better, tried, scale), torch.where(better, tried_zero, zero)
        least = torch.minimum(least, error)
    return scale, zero


def _grid(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """ONNX Runtime's grid for a range. If symmetric, the value farthest from zero becomes the lowest integer."""
    if scheme.symmetric:
        zero = torch.full_like(low, scheme.fixed_zero_point)
        scale = torch.where(high > -low, high, low) / -scheme.fixed_zero_point
        return torch.where(scale == 0, 1, scale), zero
    scale = (high - low) / (2**scheme.bits - 1)
    scale = torch.where(scale == 0, 1, scale)
    return scale, (-low / scale).round()
