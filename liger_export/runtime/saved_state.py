"""The state of one sequence as arrays, and as a file."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from liger_export.errors import InputError
from liger_export.runtime.buffers import Array

__all__ = ["SavedState"]


@dataclass(frozen=True, slots=True)
class SavedState:
    """The state of one sequence. Any session of the same model can continue from it, in any process or backend.

    Attributes:
        position: Number of tokens read.
        tensors: State tensors by the name of the graph input, each ``[1, ...]``. bfloat16 tensors hold their bits as
            uint16, also in the file (see ``runtime.dtypes``).
    """

    position: int
    tensors: dict[str, Array]

    def save(self, path: str | Path) -> None:
        """Write the state to a ``.npz`` file."""
        with Path(path).open("wb") as stream:
            np.savez(stream, position=np.array(self.position), **self.tensors)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: str | Path) -> "SavedState":
        """Read a file that ``save`` wrote. Raises InputError if it is not such a file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(int(stored["position"]), {name: stored[name] for name in stored.files if name != "position"})
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a saved state ({error}).", "Pass a file that save wrote.") from error
