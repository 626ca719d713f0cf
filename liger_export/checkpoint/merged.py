"""A checkpoint with merged adapters, read as rows of float32."""

from dataclasses import dataclass

from torch import Tensor

from liger_export.checkpoint.adapter import Adapter
from liger_export.checkpoint.reader import Checkpoint
from liger_export.errors import AdapterError, CheckpointError

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
        """Rows ``start`` to ``stop`` of a tensor, float32.

        Raises:
            CheckpointError, AdapterError: a value is NaN or infinite, or exceeds float32.
        """
        rows = self.checkpoint.read_rows(name, start, stop).float()
        if not _is_finite(rows):
            raise CheckpointError(
                f"{name} in {self.checkpoint.tensors[name].file} contains NaN or infinity, or values beyond float32.",
                "Restore the original checkpoint, or use an earlier one of the training run.",
            )
        for adapter in self.adapters:
            if name in adapter.updates:
                rows += adapter.updates[name].rows(start, stop)
                if not _is_finite(rows):
                    raise AdapterError(
                        f"{adapter.directory} changes {name} to NaN or infinity.",
                        "Restore the adapter, or use an earlier one of the training run.",
                    )
        return rows


def _is_finite(values: Tensor) -> bool:
    """Return true if no value is NaN or infinite, in one pass without a temporary tensor."""
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())  # both are NaN if any value is
