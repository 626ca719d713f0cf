"""A checkpoint's weights, as they are or rounded without looking at data."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liger_export.checkpoint import MergedCheckpoint
from liger_export.precision import Scheme
from liger_export.quantize.blocks import Blocks, encode

__all__ = ["RoundedCheckpoint"]


@dataclass(frozen=True, slots=True)
class RoundedCheckpoint:
    """Any rows of a checkpoint, adapters merged; safe to ask from several threads."""

    weights: MergedCheckpoint
    method: str

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.weights.checkpoint.tensors[name].shape

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows of a tensor, float32."""
        rows: npt.NDArray[np.float32] = self.weights.rows(name, start, stop).numpy()
        return rows

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Rows of a matrix, rounded by ``method``."""
        return encode(self.rows(name, start, stop), scheme, self.method)
