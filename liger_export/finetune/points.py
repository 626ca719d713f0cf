"""The work directory of a run, with the points to resume from. At any moment, a point is whole or absent."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from liger_export.errors import OutputError
from liger_export.partials import remove_leftovers, sync, sync_tree

__all__ = ["WorkDirectory"]

KEPT = 2  # points
POINT = re.compile(r"point-(\d+)")
RECORD = "run.json"
PARTIAL = "partial"
REMOVED = "removed"
OWN = re.compile(rf"{POINT.pattern}|\.?{re.escape(RECORD)}(\.partial-.*)?|{PARTIAL}|{REMOVED}")
TORCH_WRITE_ERRORS = ("inline_container", "iostream error")  # in the RuntimeErrors of torch.save


@dataclass(frozen=True, slots=True)
class WorkDirectory:
    """Directory that a run writes to until it ends. Only its first process creates, renames and removes.

    Attributes:
        path: the directory, which may not exist yet.
    """

    path: Path

    @property
    def record(self) -> Path:
        """The file that describes the run at its beginning."""
        return self.path / RECORD

    @property
    def partial(self) -> Path:
        """Directory that a point is written to. Files that a killed run left here are ignored."""
        return self.path / PARTIAL

    def points(self) -> list[Path]:
        """Return the points to resume from, oldest first."""
        if not self.path.is_dir():
            return []
        steps = {int(match[1]): name for name in self._names() if (match := POINT.fullmatch(name))}
        return [self.path / steps[step] for step in sorted(steps)]

    def latest(self) -> Path | None:
        """Return the point of the most steps, or None if there is none."""
        return next(reversed(self.points()), None)

    def require_own(self) -> None:
        """Check that the directory holds nothing but what runs write. Raises OutputError."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is not a directory.", "Choose another output, or remove it.")
        other = [name for name in self._names() if not OWN.fullmatch(name)] if self.path.exists() else []
        if other:
            cause = f"{self.path / min(other)} is in the way: a run needs this directory for itself."
            raise OutputError(cause, f"Choose another output, or remove {self.path}.")

    def prepare(self) -> None:
        """Create the directory, and remove what a killed run left there, except its points and record."""
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self._clear()

    def publish(self, written: Path, step: int) -> None:
        """Make the finished directory ``written``, somewhere in ``partial``, the point of a step."""
        sync_tree(written)
        written.rename(self.path / f"point-{step}")
        sync(self.path)
        for point in self.points()[:-KEPT]:
            self._remove_point(point)

    def remove(self) -> None:
        """Remove everything that the run wrote. The newest point goes last, so a killed removal leaves whole points."""
        for point in self.points():
            self._remove_point(point)
        self._clear()
        self.record.unlink(missing_ok=True)
        with suppress(OSError):  # something else has appeared there meanwhile
            self.path.rmdir()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise OutputError if the block cannot write. The points before it can still be resumed from."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(part in str(error) for part in TORCH_WRITE_ERRORS):
                raise
            reason = str(error).strip().split("\n")[0].rstrip(".")
            fix = "Free some disk space or choose another disk."
            if self.points():
                fix = "Free some disk space, then continue with --resume."
            shutil.rmtree(self.partial, ignore_errors=True)
            raise OutputError(f"{self.path} cannot be written: {reason}.", fix) from error

    def _names(self) -> list[str]:
        return [entry.name for entry in self.path.iterdir()]

    def _remove_point(self, point: Path) -> None:
        """Remove a point. It gets another name first, because it is not whole while its files are removed."""
        removed = self.path / REMOVED
        if removed.exists():
            shutil.rmtree(removed)
        point.rename(removed)
        shutil.rmtree(removed)

    def _clear(self) -> None:
        remove_leftovers(self.record)
        for name in (PARTIAL, REMOVED):
            if (self.path / name).exists():
                shutil.rmtree(self.path / name)
