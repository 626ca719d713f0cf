"""A checkpoint's weights, in float32 or rounded without calibration data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

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
        with _one_thread():
            rows: npt.NDArray[np.float32] = self.weights.rows(name, start, stop).numpy()
        return rows

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Rows ``start`` to ``stop`` of a matrix, rounded by ``method``."""
        rows = self.rows(name, start, stop)
        with _one_thread():
            return encode(rows, scheme, self.method)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep PyTorch from starting threads in a thread of several that share the cores already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
