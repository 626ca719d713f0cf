"""Run the graph of a package in ONNX Runtime. It takes any number of tokens per call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np

from liger_export.ort import ort
from liger_export.package import FUSED, ONE_SEQUENCE, Manifest
from liger_export.runtime.buffers import CPU, CUDA, Array, Buffer, new_buffer, rows_of
from liger_export.runtime.calls import NO_CAPTURE, Call, Graph
from liger_export.runtime.dtypes import numpy_dtype
from liger_export.runtime.executor import Logits, Tokens
from liger_export.runtime.state_buffers import StateBuffers
from liger_export.runtime.top_logits import TopLogits
from liger_export.state import StateTensor

__all__ = ["PREFILL_CHUNK", "DynamicExecutor", "new_capture_id"]

# Tokens per call. On a CPU, longer calls are not faster and need more memory; a GPU needs more work per call.
PREFILL_CHUNK = {CPU: 128, CUDA: 1024}
EXACT_TOKENS = 16  # with more, the fused graph's products add up in another order
CHECKED_TOKENS = 3
# Executors that share a model need different ids: a captured graph holds the addresses of one executor's buffers.
_capture_ids = count(1)


def new_capture_id() -> int:
    """Return an id of a captured graph that no other executor in this process has."""
    return next(_capture_ids)


@dataclass(frozen=True, slots=True)
class _Read:
    """A call that reads tokens.

    ``text`` holds tokens in its first row and their positions in its second, int64 [2, T]: one copy to a GPU.
    """

    text: Buffer
    call: Call


@dataclass(frozen=True, slots=True)
class _Home:
    """A state, and the calls of one token that read each set of its buffers."""

    state: StateBuffers
    steps: list[_Read]


class DynamicExecutor:
    """See ``Executor`` and ``AheadExecutor``.

    Nothing is allocated per step, and memory does not depend on the number of tokens read.

    On a GPU, the steps that read the first set of state buffers are captured as one CUDA graph and those that read the
    second as another; both are then replayed.

    Attributes:
        model: ONNX Runtime's session, which executors can share.
    """

    exact = EXACT_TOKENS

    def __init__(
        self, model: ort.InferenceSession, manifest: Manifest, *, lowering: str, device: str, capture: bool = True
    ) -> None:
        """Allocate the buffers and bind the steps.

        Args:
            model: ONNX Runtime's session of the graph.
            manifest: The package's manifest.
            lowering: The graph's key in the manifest.
            device: ``cpu`` or ``cuda``.
            capture: On a GPU, capture and replay steps; otherwise their kernels are launched one by one.
        """
        self.model = model
        self.lowering = lowering
        self.device = device
        self.graph = Graph(model, manifest, lowering=lowering, device=device)
        self._manifest = manifest
        self._capture = capture
        self._vocab_size = manifest.model_config.vocab_size
        self._outputs = {
            name: new_buffer(device, (1, *shape), dtype) for name, (shape, dtype) in self.graph.row_outputs().items()
        }
        self._home = self._new_home()
        self._spare: _Home | None = None  # takes the state after tokens that were read ahead

    @property
    def position(self) -> int:
        """See ``Executor``."""
        return self._state.position

    @property
    def chunk(self) -> int:
        """See ``Executor``."""
        return PREFILL_CHUNK[self.device]

    def last_logits(self) -> Logits:
        """See ``Prediction``."""
        logits: Logits = self._outputs["logits"].read()[0, 0]
        return logits

    def argmax(self) -> int | None:
        """See ``Prediction``."""
        if not self.graph.computes_argmax:
            return None
        return self.graph.checked_argmax(int(self._outputs["most_likely"].read()[0, 0]), self.last_logits)

    def top_logits(self, temperature: float) -> TopLogits | None:
        """See ``Prediction``."""
        if not self.graph.computes_top_logits(temperature):
            return None
        return TopLogits.from_output(self._outputs["candidates"].read()[0], self._vocab_size, temperature)

    def request_top_logits(self, temperature: float) -> None:
        """See ``Executor``."""
        self.graph.request_top_logits(temperature)

    def read(self, tokens: Tokens) -> None:
        """See ``Executor``."""
        for start in range(0, len(tokens), self.chunk):
            piece = tokens[start : start + self.chunk]
            if len(piece) == 1:
                call = self._home.steps[self._state.turn]
            else:
                text = new_buffer(self.device, (2, len(piece)), "int64")
                call = self._bind(text, *self._in_turn(), self._outputs, keep=1)
            self._run(call, piece)

    def read_with_all_logits(self, tokens: Tokens) -> Logits:
        """See ``Executor``. This is always a single call of the graph."""
        logits = new_buffer(self.device, (1, len(tokens), self._vocab_size), "float32")
        text = new_buffer(self.device, (2, len(tokens)), "int64")
        self._run(self._bind(text, *self._in_turn(), {"logits": logits}, keep=0), tokens)
        read: Logits = logits.read()[0]
        return read

    def read_state(self) -> dict[str, Array]:
        """See ``Executor``."""
        return self._state.read()

    def write_state(self, position: int, tensors: dict[str, Array]) -> None:
        """See ``Executor``."""
        self._state.write(position, tensors)

    def clear_state(self) -> None:
        """See ``Executor``."""
        self._state.clear()

    def fresh(self) -> "DynamicExecutor":
        """See ``Executor``."""
        lowering, device, capture = self.lowering, self.device, self._capture
        return DynamicExecutor(self.model, self._manifest, lowering=lowering, device=device, capture=capture)

    def run(self, token_ids: Tokens, position: int, past: dict[str, Array]) -> tuple[Logits, dict[str, Array]]:
        """See ``Executor``.

        ONNX Runtime's CPU kernel can continue several sequences only by one token per call. With more tokens, and in a
        graph that takes one sequence, the rows run one after the other.
        """
        batch, length = token_ids.shape
        if batch > 1 and (self.lowering in ONE_SEQUENCE or (length > 1 and position > 0)):
            rows = [{name: tensor[row : row + 1] for name, tensor in past.items()} for row in range(batch)]
            results = [self.run(token_ids[row : row + 1], position, rows[row]) for row in range(batch)]
            nexts = {name: np.concatenate([present[name] for _, present in results]) for name in past}
            return np.concatenate([logits for logits, _ in results]), nexts
        table = self._manifest.state
        positions = np.broadcast_to(np.arange(position, position + length), token_ids.shape)
        text = [self._holding(array, "int64") for array in (token_ids, positions)]
        states = [self._holding(past[entry.past_name], entry.dtype) for entry in table]
        logits = new_buffer(self.device, (batch, length, self._vocab_size), "float32")
        present = [new_buffer(self.device, (batch, *entry.shape), entry.dtype) for entry in table]
        self.graph.run(self.graph.bind(text, states, {"logits": logits}, present, keep=0))
        return logits.read(), {entry.past_name: each.read() for entry, each in zip(table, present, strict=True)}

    def buffer_addresses(self) -> list[int]:
        """See ``Executor``."""
        homes = [self._home, *([self._spare] if self._spare else [])]
        return sorted(address for home in homes for address in home.state.addresses())

    def ahead(self) -> "DynamicExecutor | None":
        """See ``Executor``."""
        return self if self._is_exact else None

    def read_ahead(self, tokens: Tokens, keep: int) -> Logits:
        """See ``AheadExecutor``."""
        if self._spare is None:
            self._spare = self._new_home()
        state, after = self._state, self._spare.state
        logits = new_buffer(self.device, (1, keep, self._vocab_size), "float32")
        text = new_buffer(self.device, (2, len(tokens)), "int64")
        past, present = state.sets[state.turn], after.sets[after.turn]
        self._call(self._bind(text, past, present, {"logits": logits}, keep=keep), tokens)
        after.position = state.position + len(tokens)
        read: Logits = logits.read()[0]
        return read

    def adopt(self) -> None:
        """See ``AheadExecutor``."""
        assert self._spare is not None
        self._home, self._spare = self._spare, self._home

    @cached_property
    def _is_exact(self) -> bool:
        """True if calls of up to ``exact`` tokens give what calls of one token give, bit by bit.

        The fused graph's operators are made for it. Its other products are ONNX Runtime's, which are compared here.
        """
        if self.lowering != FUSED or self.device != CPU or self._manifest.model_config.softmax_layers:
            return False
        tokens = np.arange(1, 1 + CHECKED_TOKENS)[None] % self._vocab_size
        start = {
            entry.past_name: np.zeros((1, *entry.shape), numpy_dtype(entry.dtype)) for entry in self._manifest.state
        }
        logits, state = self.run(tokens, 0, start)
        for position in range(CHECKED_TOKENS):
            one, start = self.run(tokens[:, position : position + 1], position, start)
            if not np.array_equal(one[0, 0], logits[0, position]):
                return False
        return all(np.array_equal(start[name], state[name]) for name in start)

    @property
    def _state(self) -> StateBuffers:
        return self._home.state

    def _in_turn(self) -> tuple[Sequence[Buffer], Sequence[Buffer]]:
        """The buffers that the next call reads, and those that it writes."""
        sets, turn = self._state.sets, self._state.turn
        return sets[turn], sets[1 - turn]

    def _new_home(self) -> _Home:
        """Allocate a state, and bind the calls of one token."""
        state = StateBuffers(self._manifest.state, self._new_state, self.graph.in_place)
        text = new_buffer(self.device, (2, 1), "int64")
        steps = [
            self._bind(
                text,
                state.sets[turn],
                state.sets[1 - turn],
                self._outputs,
                keep=1,
                graph_id=new_capture_id() if self._capture else NO_CAPTURE,
            )
            for turn in (0, 1)
        ]
        return _Home(state, steps)

    def _new_state(self, entry: StateTensor) -> Buffer:
        return new_buffer(self.device, (1, *entry.shape), entry.dtype)

    def _holding(self, array: Array, dtype: str) -> Buffer:
        """Return a new buffer with the content of an array."""
        buffer = new_buffer(self.device, array.shape, dtype)
        buffer.write(array)
        return buffer

    def _run(self, read: _Read, tokens: Tokens) -> None:
        """Read tokens in one call of the graph."""
        self._call(read, tokens)
        self._state.advance(len(tokens))

    def _call(self, read: _Read, tokens: Tokens) -> None:
        """Run one call of the graph for tokens that follow those read."""
        position = self._state.position
        read.text.write(np.array([tokens, np.arange(position, position + len(tokens))]))
        self.graph.run(read.call)

    def _bind(
        self,
        text: Buffer,
        past: Sequence[Buffer],
        present: Sequence[Buffer],
        outputs: Mapping[str, Buffer],
        *,
        keep: int,
        graph_id: int = NO_CAPTURE,
    ) -> _Read:
        """Bind a call.

        Args:
            text: See ``_Read``.
            past: The state buffers to read.
            present: The state buffers to write.
            outputs: See ``Graph.bind``.
            keep: See ``Graph.bind``.
            graph_id: See ``Graph.bind``.
        """
        rows = [rows_of(text, row) for row in range(2)]
        return _Read(text, self.graph.bind(rows, past, outputs, present, keep=keep, graph_id=graph_id))
