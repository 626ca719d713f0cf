"""A checkpoint with merged adapters, read as rows of float32."""

from dataclasses import dataclass

from torch import Tensor

from liger_export.checkpoint.adapter import Adapter
from liger_export.checkpoint.reader import Checkpoint

__all__ = ["MergedCheckpoint"]


@dataclass(frozen=True)
class MergedCheckpoint:
    """A checkpoint's weights plus the updates of all adapters, added in the given order."""

    checkpoint: Checkpoint
    adapters: tuple[Adapter, ...] = ()

    def check(self) -> None:
        """Check every adapter against the checkpoint. Raises AdapterError."""
        for adapter in self.adapters:
            adapter.check(self.checkpoint)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, float32."""
        rows = self.checkpoint.read_rows(name, start, stop).float()
        for adapter in self.adapters:
            if name in adapter.updates:
                rows += adapter.updates[name].rows(start, stop)
        return rows
