"""Run an engine directory: graphs of one token and of a fixed number of them, on ONNX Runtime or on an engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from liger_export.errors import PackageError
from liger_export.ort import ort, session_options
from liger_export.package import PORTABLE, Manifest
from liger_export.package.engines import ONNX, EngineRecord
from liger_export.runtime.buffers import CPU, CUDA, Buffer, HostBuffer, SavedState
from liger_export.runtime.dtypes import numpy_dtype
from liger_export.runtime.session import Session
from liger_export.state import StateTensor

__all__ = ["FixedGraphs", "FixedSession", "OnnxGraphs", "engine_device", "open_engine"]

Array = npt.NDArray[Any]


class FixedGraphs(Protocol):
    """The graphs of an engine directory, by the tokens that a call of each takes."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Memory, zeroed, that both numpy and the graphs read and write."""

    def bind(
        self, length: int, tensors: Mapping[str, Array], copies: Sequence[tuple[Array, Array]] = ()
    ) -> Callable[[], None]:
        """What runs the graph of ``length`` tokens on these tensors, by name, and returns when it is done.

        Before it returns, each first array of ``copies`` is copied to the second.
        """


@dataclass(slots=True)
class _Call:
    """The inputs and outputs of one graph, at one place for the life of a session.

    Attributes:
        tokens: int64 [1, T].
        positions: int64 [1, T], -1 at padding.
        logits: float32 [1, T, vocab_size].
        runs: what runs it from the first set of state buffers to the second, and the other way.
    """

    tokens: Array
    positions: Array
    logits: Array
    runs: list[Callable[[], None]] = field(default_factory=list)


class FixedSession(Session):
    """A session on graphs that take one token, or a fixed number of which the last may be padding.

    State lies in two sets of buffers that calls read from and write to in turn; both sets share those that the graph of
    one token updates in place, which longer calls write beside and copy back. Every call is bound once.
    """

    _model: FixedGraphs

    def _set_up(self) -> None:
        record = _record(self.manifest)
        self._in_place = self.manifest.graphs[self.lowering].in_place
        first = [self._new_state(entry) for entry in self._table]
        second = [
            buffer if entry.past_name in self._in_place else self._new_state(entry)
            for entry, buffer in zip(self._table, first, strict=True)
        ]
        self._buffers = [first, second]
        self._calls = {length: self._prepare(length) for length in record.files}
        self._chunk = record.chunk
        self._logits = HostBuffer(self._calls[1].logits)

    def _new_state(self, entry: StateTensor) -> Buffer:
        return HostBuffer(self._model.zeros((1, *entry.shape), numpy_dtype(entry.dtype).name))

    def _prepare(self, length: int) -> _Call:
        call = _Call(
            self._model.zeros((1, length), "int64"),
            self._model.zeros((1, length), "int64"),
            self._model.zeros((1, length, self._vocab_size), "float32"),
        )
        # A graph of several tokens reads states for as long as it writes their successors.
        apart = [entry for entry in self._table if length > 1 and entry.past_name in self._in_place]
        beside = {entry.past_name: self._new_state(entry).read() for entry in apart}
        for past, present in ((0, 1), (1, 0)):
            copies = []
            tensors = {"input_ids": call.tokens, "position_ids": call.positions, "logits": call.logits}
            for entry, old, new in zip(self._table, self._buffers[past], self._buffers[present], strict=True):
                written = beside.get(entry.past_name)
                if written is not None:
                    copies.append((written, new.read()))
                tensors |= {entry.past_name: old.read(), entry.present_name: new.read() if written is None else written}
            call.runs.append(self._model.bind(length, tensors, copies))
        return call

    def _read(self, tokens: npt.NDArray[np.int64], *, every_position: bool = False) -> npt.NDArray[np.float32]:
        logits = np.empty((1, len(tokens) if every_position else 0, self._vocab_size), dtype=np.float32)
        done = 0
        for piece in self._pieces(tokens):
            call = self._calls[1 if len(piece) == 1 else self._chunk]
            call.tokens[0, : len(piece)], call.tokens[0, len(piece) :] = piece, 0
            call.positions[0, : len(piece)] = np.arange(self.position, self.position + len(piece))
            call.positions[0, len(piece) :] = -1
            call.runs[self._turn]()
            self._turn = 1 - self._turn
            self.position += len(piece)
            if every_position:
                logits[0, done : done + len(piece)] = call.logits[0, : len(piece)]
            self._logits.write(call.logits[:, len(piece) - 1 : len(piece)])
            done += len(piece)
        self._seen[tokens] = True
        return logits

    def _pieces(self, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        size = self._chunk or 1
        yield from (tokens[start : start + size] for start in range(0, len(tokens), size))

    def run(
        self, token_ids: npt.NDArray[np.int64], position: int, past: dict[str, Array]
    ) -> tuple[npt.NDArray[np.float32], dict[str, Array]]:
        """As ``Session.run``; the rows of a batch run one after the other."""
        other = type(self)(self.manifest, self.tokenizer, self._model, lowering=self.lowering, device=self.device)
        logits, nexts = [], []
        for row, tokens in enumerate(token_ids):
            other.load_state(SavedState(position, {name: tensor[row : row + 1] for name, tensor in past.items()}))
            logits.append(other.all_logits(tokens.tolist()))
            nexts.append(other.state().tensors)
        return np.stack(logits), {name: np.concatenate([each[name] for each in nexts]) for name in past}


class OnnxGraphs:
    """Portable graphs on ONNX Runtime's CPU provider."""

    def __init__(self, sessions: Mapping[int, Any]) -> None:
        self._sessions = sessions

    @classmethod
    def open(cls, directory: Path, record: EngineRecord, threads: int | None) -> "OnnxGraphs":
        """Open each graph. Raises PackageError if one cannot be."""
        options = session_options(threads)
        try:
            return cls(
                {
                    length: ort.InferenceSession(directory / name, options, providers=["CPUExecutionProvider"])
                    for length, name in record.files.items()
                }
            )
        except Exception as error:  # ONNX Runtime raises its own types
            raise PackageError(f"{directory} cannot be opened ({error}).", "Build it again.") from error

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """As ``FixedGraphs``."""
        return np.zeros(shape, dtype)

    def bind(
        self, length: int, tensors: Mapping[str, Array], copies: Sequence[tuple[Array, Array]] = ()
    ) -> Callable[[], None]:
        """As ``FixedGraphs``."""
        session = self._sessions[length]
        binding = session.io_binding()
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()}
        for node in session.get_inputs():
            binding.bind_ortvalue_input(node.name, values[node.name])
        for node in session.get_outputs():
            binding.bind_ortvalue_output(node.name, values[node.name])

        def run(owners: Sequence[Any] = tuple(values.values())) -> None:
            session.run_with_iobinding(binding)
            for source, target in copies:
                target[...] = source

        return run


def open_engine(
    directory: Path, manifest: Manifest, tokenizer: Tokenizer, *, threads: int | None, verify: bool
) -> FixedSession:
    """As ``load``, of an engine directory.

    Raises:
        PackageError: it is incomplete or changed.
        EnvironmentMismatchError: its library is not installed, or of another version, or no device here runs it.
    """
    record = _record(manifest)
    manifest.check_files(directory, hashes=verify)
    graphs: FixedGraphs
    if record.backend == ONNX:
        graphs = OnnxGraphs.open(directory, record, threads)
    else:
        from liger_export.runtime.tensorrt import TensorRTGraphs  # its library may not be installed

        graphs = TensorRTGraphs.open(directory, record)
    return FixedSession(manifest, tokenizer, graphs, lowering=PORTABLE, device=engine_device(record))


def engine_device(record: EngineRecord) -> str:
    """Where an engine runs."""
    return CPU if record.backend == ONNX else CUDA


def _record(manifest: Manifest) -> EngineRecord:
    if manifest.engine is None:
        raise TypeError("this manifest is of a package, not of an engine directory")
    return manifest.engine
