"""Run an engine directory: one graph takes one token, the other a fixed number of tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from liger_export.errors import PackageError
from liger_export.ort import ort, session_options
from liger_export.package import PORTABLE, Manifest
from liger_export.package.engines import ONNX, EngineRecord
from liger_export.runtime.buffers import CPU, CUDA, Array, Buffer, HostBuffer
from liger_export.runtime.described import require_described
from liger_export.runtime.dtypes import numpy_dtype
from liger_export.runtime.executor import Logits, Tokens
from liger_export.runtime.state_buffers import StateBuffers
from liger_export.runtime.top_logits import TopLogits
from liger_export.state import StateTensor

__all__ = ["FixedExecutor", "FixedGraphs", "OnnxGraphs", "engine_device", "open_engine"]


class FixedGraphs(Protocol):
    """The graphs of an engine directory, by the number of tokens per call."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Allocate zeroed memory that both numpy and the graphs can access."""

    def bind(
        self, length: int, tensors: Mapping[str, Array], copies: Sequence[tuple[Array, Array]] = ()
    ) -> Callable[[], None]:
        """Bind the graph of ``length`` tokens to tensors by name.

        Returns:
            A function that runs the graph, copies the first array of each pair in ``copies`` to the second, and returns
            when both are done.
        """


@dataclass(slots=True)
class _Call:
    """The inputs and outputs of one graph, at fixed addresses.

    Attributes:
        tokens: int64 [1, T].
        positions: int64 [1, T]; -1 marks padding.
        logits: float32 [1, T, vocab_size].
        runs: One function per set of state buffers: it reads that set and writes the other.
    """

    tokens: Array
    positions: Array
    logits: Array
    runs: list[Callable[[], None]] = field(default_factory=list)


class FixedExecutor:
    """See ``Executor``. A call takes one token, or a fixed number of which the last may be padding.

    Every call is bound once. Tensors that the graph of one token updates in place have a single buffer; the longer
    graph writes them to a separate buffer, which is then copied back.
    """

    lowering = PORTABLE

    def __init__(self, graphs: FixedGraphs, manifest: Manifest) -> None:
        """Allocate the buffers and bind all calls.

        Args:
            graphs: The graphs, which executors can share.
            manifest: The engine directory's manifest.
        """
        record = _record(manifest)
        self.device = engine_device(record)
        self._graphs = graphs
        self._manifest = manifest
        self._vocab_size = manifest.model_config.vocab_size
        self._in_place = manifest.graphs[self.lowering].in_place
        self._state = StateBuffers(manifest.state, self._new_state, self._in_place)
        self._chunk = record.chunk or 1
        self._calls = {length: self._prepare(length) for length in record.files}
        self._last_logits: Logits = self._calls[1].logits[0, 0]

    @property
    def position(self) -> int:
        """See ``Executor``."""
        return self._state.position

    @property
    def chunk(self) -> int:
        """See ``Executor``."""
        return self._chunk

    def last_logits(self) -> Logits:
        """See ``Prediction``."""
        return self._last_logits

    def argmax(self) -> int | None:
        """See ``Prediction``. These graphs do not compute it."""
        return None

    def top_logits(self, temperature: float) -> TopLogits | None:
        """See ``Prediction``. These graphs do not compute them."""
        return None

    def request_top_logits(self, temperature: float) -> None:
        """See ``Executor``. These graphs do not compute them."""

    def read(self, tokens: Tokens) -> None:
        """See ``Executor``."""
        for piece in self._pieces(tokens):
            self._run(piece)

    def read_with_all_logits(self, tokens: Tokens) -> Logits:
        """See ``Executor``."""
        logits = np.empty((len(tokens), self._vocab_size), dtype=np.float32)
        done = 0
        for piece in self._pieces(tokens):
            logits[done : done + len(piece)] = self._run(piece)
            done += len(piece)
        return logits

    def read_state(self) -> dict[str, Array]:
        """See ``Executor``."""
        return self._state.read()

    def write_state(self, position: int, tensors: dict[str, Array]) -> None:
        """See ``Executor``."""
        self._state.write(position, tensors)

    def clear_state(self) -> None:
        """See ``Executor``."""
        self._state.clear()

    def fresh(self) -> "FixedExecutor":
        """See ``Executor``."""
        return FixedExecutor(self._graphs, self._manifest)

    def run(self, token_ids: Tokens, position: int, past: dict[str, Array]) -> tuple[Logits, dict[str, Array]]:
        """See ``Executor``. The rows of a batch run one after the other."""
        other = self.fresh()
        logits, nexts = [], []
        for row, tokens in enumerate(token_ids):
            other.write_state(position, {name: tensor[row : row + 1] for name, tensor in past.items()})
            logits.append(other.read_with_all_logits(tokens))
            nexts.append(other.read_state())
        return np.stack(logits), {name: np.concatenate([each[name] for each in nexts]) for name in past}

    def buffer_addresses(self) -> list[int]:
        """See ``Executor``."""
        return self._state.addresses()

    def ahead(self) -> None:
        """See ``Executor``. The graph of one token and that of many round differently."""

    def _new_state(self, entry: StateTensor) -> Buffer:
        return HostBuffer(self._graphs.zeros((1, *entry.shape), numpy_dtype(entry.dtype).name))

    def _prepare(self, length: int) -> _Call:
        """Allocate and bind the graph of ``length`` tokens."""
        call = _Call(
            self._graphs.zeros((1, length), "int64"),
            self._graphs.zeros((1, length), "int64"),
            self._graphs.zeros((1, length, self._vocab_size), "float32"),
        )
        # The longer graph still reads a state tensor while it writes the next one.
        separate = {
            entry.past_name: self._new_state(entry).read()
            for entry in self._manifest.state
            if length > 1 and entry.past_name in self._in_place
        }
        first, second = self._state.sets
        for past, present in ((first, second), (second, first)):
            copies = []
            tensors = {"input_ids": call.tokens, "position_ids": call.positions, "logits": call.logits}
            for entry, old, new in zip(self._manifest.state, past, present, strict=True):
                written = separate.get(entry.past_name)
                if written is not None:
                    copies.append((written, new.read()))
                tensors |= {entry.past_name: old.read(), entry.present_name: new.read() if written is None else written}
            call.runs.append(self._graphs.bind(length, tensors, copies))
        return call

    def _run(self, piece: Tokens) -> Logits:
        """Read tokens in one call and return the logits after each, [T, vocab_size], which the next call overwrites."""
        count = len(piece)
        call = self._calls[1 if count == 1 else self._chunk]
        call.tokens[0, :count], call.tokens[0, count:] = piece, 0
        call.positions[0, :count] = np.arange(self._state.position, self._state.position + count)
        call.positions[0, count:] = -1
        call.runs[self._state.turn]()
        self._state.advance(count)
        self._last_logits = call.logits[0, count - 1]
        logits: Logits = call.logits[0, :count]
        return logits

    def _pieces(self, tokens: Tokens) -> Iterator[Tokens]:
        yield from (tokens[start : start + self._chunk] for start in range(0, len(tokens), self._chunk))


class OnnxGraphs:
    """Portable graphs in ONNX Runtime's CPU provider. See ``FixedGraphs``."""

    def __init__(self, sessions: Mapping[int, ort.InferenceSession]) -> None:
        self.sessions = sessions

    @classmethod
    def open(cls, directory: Path, record: EngineRecord, threads: int | None) -> "OnnxGraphs":
        """Open every graph. Raises PackageError if ONNX Runtime cannot open one."""
        options = session_options(threads)
        try:
            return cls(
                {
                    length: ort.InferenceSession(directory / name, options, providers=["CPUExecutionProvider"])
                    for length, name in record.files.items()
                }
            )
        except Exception as error:  # ONNX Runtime raises its own types
            raise PackageError(f"{directory} cannot be opened ({error}).", "Build the engines again.") from error

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See ``FixedGraphs``."""
        return np.zeros(shape, dtype)

    def bind(
        self, length: int, tensors: Mapping[str, Array], copies: Sequence[tuple[Array, Array]] = ()
    ) -> Callable[[], None]:
        """See ``FixedGraphs``."""
        session = self.sessions[length]
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


def open_engine(directory: Path, manifest: Manifest, *, threads: int | None, verify: bool) -> FixedExecutor:
    """Open the graphs of an engine directory. For the arguments see ``load``.

    Raises:
        PackageError: The directory is incomplete or changed.
        EnvironmentMismatchError: The engine's library is missing or has another version, or no GPU here can run the
            engine.
    """
    record = _record(manifest)
    manifest.check_files(directory, weights=verify)
    graphs: FixedGraphs
    if record.backend == ONNX:
        graphs = OnnxGraphs.open(directory, record, threads)
        for model in graphs.sessions.values():
            require_described(model, manifest, directory)
    else:
        from liger_export.runtime.tensorrt import TensorRTGraphs  # its library may not be installed

        graphs = TensorRTGraphs.open(directory, record)
    return FixedExecutor(graphs, manifest)


def engine_device(record: EngineRecord) -> str:
    """Return the device that an engine runs on."""
    return CPU if record.backend == ONNX else CUDA


def _record(manifest: Manifest) -> EngineRecord:
    if manifest.engine is None:
        raise TypeError("this manifest belongs to a package, not to an engine directory")
    return manifest.engine
