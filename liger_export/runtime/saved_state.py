"""The state of one sequence as arrays, and as a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from math import prod
from pathlib import Path
from typing import IO
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import numpy.typing as npt

from liger_export.errors import InputError
from liger_export.files import new_file, require_regular
from liger_export.package import Manifest
from liger_export.runtime.buffers import Array

__all__ = ["SavedState", "model_identity"]

# Names of a file's arrays that are not state tensors. Files of older versions have only the position.
POSITION, MODEL, PENDING, RECENT, SEEN, LOGITS = "position", "model", "pending", "recent", "seen", "logits"
DIGEST, MESSAGES = "digest", "messages"
FIELDS = (POSITION, MODEL, PENDING, RECENT, SEEN, LOGITS, DIGEST, MESSAGES)
CHECKSUM = "sha256"  # of all other arrays; older files have none
SUFFIX = ".npy"


@dataclass(frozen=True, slots=True)
class SavedState:
    """The state of one sequence. Any session of the same model can continue from it, in any process or backend.

    A state without ``model`` is accepted wherever its tensors fit. Without ``seen``, no token counts as seen. Without
    ``logits`` and ``pending``, ``generate`` needs a prompt. Without ``digest``, ``chat`` reads its whole prompt.

    Attributes:
        position: Number of tokens read.
        tensors: State tensors by the name of the graph input, each ``[1, ...]``. bfloat16 tensors hold their bits as
            uint16, also in the file (see ``runtime.dtypes``).
        model: ``model_identity`` of the package.
        pending: Tokens that are part of the text, but not read yet: at most the last one that ``generate`` chose.
        recent: Ids of the last tokens of the text, because the next token may complete a character of theirs.
        seen: Ids of all tokens in the text, int64 ``[N]``, for the repetition penalty.
        logits: Logits of the next token, float32 ``[vocab_size]``, if no token is pending.
        digest: Hash of the tokens read, in hexadecimal, by which ``chat`` recognizes them.
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

    def save(self, path: str | Path) -> None:
        """Write the state and its SHA-256 to a ``.npz`` file, as a whole or not at all. Raises OutputError."""
        arrays: dict[str, Array | None] = {
            POSITION: np.array(self.position),
            MODEL: None if self.model is None else np.array(self.model),
            PENDING: np.array(self.pending, dtype=np.int64),
            RECENT: np.array(self.recent, dtype=np.int64),
            SEEN: self.seen,
            LOGITS: self.logits,
            DIGEST: None if self.digest is None else np.array(self.digest),
            MESSAGES: None if self.messages is None else np.array(self.messages),
        }
        present = {name: array for name, array in arrays.items() if array is not None} | self.tensors
        present = {name: np.asarray(array, order="C") for name, array in present.items()}
        with new_file(Path(path)) as file, file.open("wb") as stream:
            np.savez(stream, **present, **{CHECKSUM: np.array(_digest(present))})  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: str | Path) -> "SavedState":
        """Read a file that ``save`` wrote. Raises InputError if it is not such a file, or was changed."""
        try:
            arrays = _read_arrays(Path(path))
            digest = arrays.pop(CHECKSUM, None)
            if digest is not None and str(digest) != _digest(arrays):
                raise ValueError("it has changed since it was written: its SHA-256 differs")
            fields = {name: arrays.pop(name) for name in FIELDS if name in arrays}
            return cls(
                int(_integers(fields[POSITION], dimensions=0)),
                arrays,
                model=str(fields[MODEL]) if MODEL in fields else None,
                pending=tuple(_integers(fields[PENDING]).tolist()) if PENDING in fields else (),
                recent=tuple(_integers(fields[RECENT]).tolist()) if RECENT in fields else (),
                seen=_integers(fields[SEEN]) if SEEN in fields else None,
                logits=fields.get(LOGITS),
                digest=str(fields[DIGEST]) if DIGEST in fields else None,
                messages=str(fields[MESSAGES]) if MESSAGES in fields else None,
            )
        except Exception as error:  # a damaged archive makes zipfile and numpy raise errors of many types
            raise InputError(f"{path} is not a saved state ({error}).", "Pass a file that save wrote.") from error


def _read_arrays(path: Path) -> dict[str, Array]:
    """Read every array of a file that ``save`` wrote. They need no more memory than the file.

    Raises:
        OSError, EOFError, BadZipFile, ValueError, KeyError: it is another file.
    """
    require_regular(path)
    with ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != ZIP_STORED for member in members):
            raise ValueError("its arrays are compressed")
        if len({member.filename for member in members}) != len(members):
            raise ValueError("it holds two arrays of one name")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its arrays are larger than the file")
        arrays = {}
        for member in members:
            with archive.open(member) as stream:
                arrays[member.filename.removesuffix(SUFFIX)] = _read_array(stream, member.file_size)
        return arrays


def _read_array(stream: IO[bytes], nbytes: int) -> Array:
    """Read one array, if the size in its header is the size of what follows."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array has an unknown format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if is_fortran or dtype.hasobject or not dtype.isnative:
        raise ValueError("an array is laid out differently")
    if prod(shape) * dtype.itemsize != nbytes - stream.tell():
        raise ValueError("an array has another size than its header says")
    return np.frombuffer(bytearray(stream.read()), dtype).reshape(shape)


def _integers(array: Array, dimensions: int = 1) -> npt.NDArray[np.int64]:
    if array.ndim != dimensions or array.dtype != np.int64:
        raise ValueError("its tokens or its position are not integers")
    return array


def _digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of arrays, in the order of their names."""
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def model_identity(manifest: Manifest) -> str:
    """Return a hash of the config, the checkpoint's files and the adapters' files, without their names.

    It is the same for every precision, lowering and engine of one model.
    """
    adapters = [adapter["sha256"] for adapter in manifest.adapters]
    contents = [manifest.config, manifest.source["files"], adapters]
    return sha256(dumps(contents, sort_keys=True).encode()).hexdigest()
