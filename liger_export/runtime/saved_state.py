"""The state of one sequence as arrays, and as a file."""

from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from liger_export.errors import InputError
from liger_export.files import new_file
from liger_export.package import Manifest
from liger_export.runtime.buffers import Array

__all__ = ["SavedState", "model_identity"]

# Names of a file's arrays that are not state tensors. Files of older versions have only the position.
POSITION, MODEL, PENDING, RECENT, SEEN, LOGITS = "position", "model", "pending", "recent", "seen", "logits"
DIGEST, MESSAGES = "digest", "messages"
FIELDS = (POSITION, MODEL, PENDING, RECENT, SEEN, LOGITS, DIGEST, MESSAGES)


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
        """Write the state to a ``.npz`` file, as a whole or not at all. Raises OutputError."""
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
        present = {name: array for name, array in arrays.items() if array is not None}
        with new_file(Path(path)) as file, file.open("wb") as stream:
            np.savez(stream, **present, **self.tensors)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: str | Path) -> "SavedState":
        """Read a file that ``save`` wrote. Raises InputError if it is not such a file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                fields = {name: stored[name] for name in FIELDS if name in stored.files}
                tensors = {name: stored[name] for name in stored.files if name not in FIELDS}
            return cls(
                int(fields[POSITION]),
                tensors,
                model=str(fields[MODEL]) if MODEL in fields else None,
                pending=tuple(fields[PENDING].tolist()) if PENDING in fields else (),
                recent=tuple(fields[RECENT].tolist()) if RECENT in fields else (),
                seen=fields.get(SEEN),
                logits=fields.get(LOGITS),
                digest=str(fields[DIGEST]) if DIGEST in fields else None,
                messages=str(fields[MESSAGES]) if MESSAGES in fields else None,
            )
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a saved state ({error}).", "Pass a file that save wrote.") from error


def model_identity(manifest: Manifest) -> str:
    """Return a hash of the config, the checkpoint's files and the adapters' files, without their names.

    It is the same for every precision, lowering and engine of one model.
    """
    adapters = [adapter["sha256"] for adapter in manifest.adapters]
    contents = [manifest.config, manifest.source["files"], adapters]
    return sha256(dumps(contents, sort_keys=True).encode()).hexdigest()
