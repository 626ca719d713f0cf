"""A directory of states after texts, bounded in bytes. Several processes may share it."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from liger_export.errors import InputError, OutputError
from liger_export.partials import remove_leftovers
from liger_export.runtime.prefix_tree import Text
from liger_export.runtime.saved_state import SavedState
from liger_export.runtime.state_file import read_header, read_tensor

__all__ = ["PrefixFiles", "StoredPrefix"]

NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.(kept|plain)\.safetensors")
PARTIAL = re.compile(r"\.(.+)\.partial-[0-9a-f]{16}(\.lock)?")
TEXT = "text"  # name of the tensor with the tokens
KEPT = {True: "kept", False: "plain"}


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """The description of a file, from its name and its header.

    Attributes:
        name: Of the file.
        text: The tokens read.
        is_kept: True if it is removed only after those that are not.
        has_logits: True if the state has the logits of the next token.
    """

    name: str
    text: Text
    is_kept: bool
    has_logits: bool


class PrefixFiles:
    """The files of states in one directory.

    A file is complete or absent at any moment, also after ``kill -9``, and is compared with its SHA-256 when it is
    read. When the files have too many bytes, those that are not kept are removed first, the one unused for longest
    first, whichever package or process they are from.
    """

    def __init__(self, directory: str | Path, max_bytes: int) -> None:
        """Create the directory, and remove what killed writers left behind.

        Args:
            directory: Holds nothing but these files.
            max_bytes: Most bytes of all files. While a file is written, there may be one file more.

        Raises:
            InputError: ``max_bytes`` is not a number of bytes.
            OutputError: The directory cannot be created.
        """
        if not isinstance(max_bytes, int) or max_bytes < 0:
            raise InputError(f"max_bytes is {max_bytes!r}.", "It must be an integer, 0 or more.")
        self._directory, self._max_bytes = Path(directory), max_bytes
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{directory} cannot be created: {error.strerror}.", "Choose a writable directory."
            ) from error
        for name in {match[1] for name in os.listdir(self._directory) if (match := PARTIAL.fullmatch(name))}:
            remove_leftovers(self._directory / name)
        self._trim()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for *_, size in self._listed())

    @property
    def changed(self) -> int:
        """A number that changes when a file is added or removed."""
        return self._directory.stat().st_mtime_ns

    def names(self, package: str) -> list[str]:
        """Return the names of a package's files. ``package``: see ``package_identity``."""
        return [name for *_, name, _ in self._listed() if name.startswith(package[:16])]

    @staticmethod
    def name(package: str, text: Text, *, is_kept: bool) -> str:
        """Return the name of the file for a text."""
        return f"{package[:16]}-{sha256(text.astype('<i4').tobytes()).hexdigest()[:32]}.{KEPT[is_kept]}.safetensors"

    def write(self, name: str, text: Text, state: SavedState) -> None:
        """Write a state, and remove others if there are too many bytes.

        Raises:
            OutputError: The disk is full or read-only.
        """
        replace(state, tensors={**state.tensors, TEXT: text}).save(self._directory / name)
        self._trim()

    def describe(self, name: str) -> StoredPrefix:
        """Read the header and the text of a file. Raises OSError or ValueError if it is gone or damaged."""
        with (self._directory / name).open("rb") as stream:
            header = read_header(stream)
            if TEXT not in header.entries:
                raise ValueError("it has no text")
            text = read_tensor(stream, header, TEXT).astype(np.int32, copy=False)
        stored = StoredPrefix(name, text, name.split(".")[1] == KEPT[True], "logits" in header.entries)
        if self.name(name, text, is_kept=stored.is_kept) != name:
            raise ValueError("its text is not the one of its name")
        return stored

    def read(self, name: str, text: Text) -> SavedState | None:
        """Read the state after a text. Return None, and remove the file, if it is gone, damaged or of another text."""
        path = self._directory / name
        with suppress(InputError):
            state = SavedState.read(path)
            stored = state.tensors.pop(TEXT, None)
            if stored is not None and state.position == len(text) and np.array_equal(stored, text):
                with suppress(OSError):
                    os.utime(path)
                return state
        self.remove(name)
        return None

    def keep(self, name: str) -> str:
        """Mark a file as one to keep, and return its new name."""
        kept = name.replace(f".{KEPT[False]}.", f".{KEPT[True]}.")
        with suppress(OSError):
            os.replace(self._directory / name, self._directory / kept)
        return kept

    def touch(self, name: str) -> None:
        """Record that a file was used."""
        with suppress(OSError):
            os.utime(self._directory / name)

    def has(self, name: str) -> bool:
        """Return True if there is a file of this name."""
        return (self._directory / name).exists()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(OSError):
            (self._directory / name).unlink()

    def _listed(self) -> list[tuple[bool, int, str, int]]:
        """Return whether each file is kept, when it was used, its name and its bytes; the next to remove first."""
        listed = []
        for entry in os.scandir(self._directory):
            if match := NAME.fullmatch(entry.name):
                with suppress(OSError):  # removed by another process
                    stat = entry.stat()
                    listed.append((match[1] == KEPT[True], stat.st_mtime_ns, entry.name, stat.st_size))
        return sorted(listed)

    def _trim(self) -> None:
        listed = self._listed()
        excess = sum(size for *_, size in listed) - self._max_bytes
        for _, _, name, size in listed:
            if excess <= 0:
                break
            self.remove(name)
            excess -= size
