"""The state of one sequence as arrays, and as a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from liger_export.errors import InputError
from liger_export.package import Manifest
from liger_export.runtime.buffers import Array
from liger_export.runtime.state_archive import is_archive, read_archive
from liger_export.runtime.state_file import read_file, write_file

__all__ = ["SavedState", "model_identity", "package_identity"]

# Names of a file's entries that are not state tensors. The oldest files have only the position.
POSITION, MODEL, PENDING, RECENT, SEEN, LOGITS = "position", "model", "pending", "recent", "seen", "logits"
DIGEST, MESSAGES, RANDOM = "digest", "messages", "random"
ARRAYS = (SEEN, LOGITS)
TEXTS = (MODEL, DIGEST, MESSAGES, RANDOM)
TOKENS = (PENDING, RECENT)


@dataclass(frozen=True, slots=True)
class SavedState:
    """The state of one sequence. Any session of the same model can continue from it, in any process or backend.

    A state without ``model`` is accepted wherever its tensors fit. Without ``seen``, no token counts as seen. Without
    ``logits`` and ``pending``, ``generate`` needs a prompt. Without ``digest``, ``chat`` reads its whole prompt.
    Without ``random``, random choices are not those that the saved session would have made.

    Attributes:
        position: Number of tokens read.
        tensors: State tensors by the name of the graph input, each ``[1, ...]``. bfloat16 tensors hold their bits as
            uint16, also in the file (see ``runtime.dtypes``).
        model: ``model_identity`` of the package.
        pending: Tokens that are part of the text, but not read yet: the last one that ``generate`` chose,
            and with ``lookup`` perhaps others before it.
        recent: Ids of the last tokens of the text, because the next token may complete a character of theirs.
        seen: Ids of all tokens in the text, int64 ``[N]``, for the repetition penalty.
        logits: Logits of the next token, float32 ``[vocab_size]``, if no token is pending.
        digest: Hash of the tokens read, in hexadecimal, by which ``chat`` recognizes them.
        random: State of the random generator as JSON, as numpy's bit generators describe it.
        messages: The conversation as JSON, in a file of the ``chat`` command. Sessions do not use it.
    """

    position: int
    tensors: dict[str, Array]
    model: str | None = None
    pending: tuple[int, ...] = ()
    recent: tuple[int, ...] = ()
    seen: npt.NDArray[np.int64] | None = None
    logits: npt.NDArray[np.float32] | None = None
    digest: str | None = None
    messages: str | None = None
    random: str | None = None

    def save(self, path: str | Path) -> None:
        """Write the state and its SHA-256 to a safetensors file, as a whole or not at all. Raises OutputError."""
        arrays = {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}
        texts = {name: text for name in TEXTS if (text := getattr(self, name)) is not None}
        numbers = {POSITION: dumps(int(self.position))}
        numbers |= {name: dumps([int(token) for token in getattr(self, name)]) for name in TOKENS}
        write_file(Path(path), self.tensors | arrays, numbers | texts)

    @classmethod
    def read(cls, path: str | Path) -> "SavedState":
        """Read a file that ``save`` wrote. Raises InputError if it is not such a file, or was changed.

        Archives that version 0.1.0 and older wrote are read too.
        """
        path = Path(path)
        try:
            return cls(**(_of_archive(read_archive(path)) if is_archive(path) else _of_file(*read_file(path))))
        except Exception as error:  # a damaged archive makes zipfile and numpy raise errors of many types
            raise InputError(f"{path} is not a saved state ({error}).", "Pass a file that save wrote.") from error


def _of_file(tensors: dict[str, Array], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes of the state in a safetensors file. Raises ValueError or KeyError."""
    position, *tokens = (json.loads(texts[name]) for name in (POSITION, *TOKENS))
    if not all(type(number) is int for number in (position, *(number for each in tokens for number in each))):
        raise ValueError("its tokens or its position are not integers")
    arrays = {name: tensors.pop(name) for name in ARRAYS if name in tensors}
    if SEEN in arrays:
        _integers(arrays[SEEN])
    named = {name: tuple(each) for name, each in zip(TOKENS, tokens, strict=True)}
    return {POSITION: position, "tensors": tensors, **named, **arrays, **{n: texts[n] for n in TEXTS if n in texts}}


def _of_archive(arrays: dict[str, Array]) -> dict[str, Any]:
    """Return the attributes of the state in an old archive. Raises ValueError or KeyError."""
    values: dict[str, Any] = {POSITION: int(_integers(arrays.pop(POSITION), dimensions=0))}
    values |= {name: str(arrays.pop(name)) for name in TEXTS if name in arrays}
    values |= {name: tuple(_integers(arrays.pop(name)).tolist()) for name in TOKENS if name in arrays}
    if SEEN in arrays:
        values[SEEN] = _integers(arrays.pop(SEEN))
    if LOGITS in arrays:
        values[LOGITS] = arrays.pop(LOGITS)
    return values | {"tensors": arrays}


def _integers(array: Array, dimensions: int = 1) -> npt.NDArray[np.int64]:
    if array.ndim != dimensions or array.dtype != np.int64:
        raise ValueError("its tokens or its position are not integers")
    return array


def model_identity(manifest: Manifest) -> str:
    """Return a hash of the config, the checkpoint's files and the adapters' files, without their names.

    It is the same for every precision, lowering and engine of one model.
    """
    adapters = [adapter["sha256"] for adapter in manifest.adapters]
    contents = [manifest.config, manifest.source["files"], adapters]
    return sha256(dumps(contents, sort_keys=True).encode()).hexdigest()


def package_identity(manifest: Manifest) -> str:
    """Return a hash of a package's contents: of two packages of one model, only equal ones have the same."""
    files = {name: entry["sha256"] for name, entry in manifest.files.items()}
    return sha256(dumps([model_identity(manifest), files], sort_keys=True).encode()).hexdigest()
