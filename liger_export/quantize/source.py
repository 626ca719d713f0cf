"""A checkpoint's weights, in float32 or rounded without calibration data."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liger_export.checkpoint import MergedCheckpoint
from liger_export.precision import Scheme
from liger_export.quantize.blocks import Blocks, encode

__all__ = ["RoundedCheckpoint"]


@dataclass(frozen=True, slots=True)
class RoundedCheckpoint:
    """Rows of a checkpoint with merged adapters, in float32 or rounded. Safe to use from several threads.

    Attributes:
        weights: checkpoint and adapters.
        method: rounding method, ``rtn`` or ``k-quant``.
    """

    weights: MergedCheckpoint
    method: str

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.weights.checkpoint.tensors[name].shape

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of a tensor, float32."""
        rows: npt.NDArray[np.float32] = self.weights.rows(name, start, stop).numpy()
        return rows

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Rows ``start`` to ``stop`` of a matrix, rounded by ``method``."""
        return encode(self.rows(name, start, stop), scheme, self.method)
