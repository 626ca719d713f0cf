"""A checkpoint with its adapters merged, read as float32 in blocks of rows."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from liger_export.checkpoint.adapter import Adapter
from liger_export.checkpoint.reader import Checkpoint

__all__ = ["MergedCheckpoint"]


@dataclass(frozen=True)
class MergedCheckpoint:
    """Weights as the model uses them: base plus every adapter's update, in the order given."""

    checkpoint: Checkpoint
    adapters: tuple[Adapter, ...] = ()

    def check(self) -> None:
        """Check every adapter against the checkpoint. Raises AdapterError."""
        for adapter in self.adapters:
            adapter.check(self.checkpoint)

    def blocks(self, name: str, block_bytes: int) -> Iterator[Tensor]:
        """Yield a tensor's rows, float32, in blocks of about ``block_bytes``."""
        for start, stop in self.checkpoint.row_blocks(name, block_bytes):
            rows = self.checkpoint.read_rows(name, start, stop).float()
            for adapter in self.adapters:
                delta = adapter.delta(name, start, stop)
                if delta is not None:
                    rows += delta
            yield rows
