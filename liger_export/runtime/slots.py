"""Many sequences in one set of buffers: their prompts are read one by one, and they continue together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from liger_export.errors import InputError
from liger_export.package import ONE_SEQUENCE
from liger_export.runtime.buffers import CUDA, Array
from liger_export.runtime.calls import NO_CAPTURE, Call, Graph
from liger_export.runtime.cuda import Cuda
from liger_export.runtime.dtypes import numpy_dtype
from liger_export.runtime.dynamic import DynamicExecutor, new_capture_id
from liger_export.runtime.executor import Executor, Logits, Prediction, Tokens
from liger_export.runtime.rows import Rows, new_rows
from liger_export.runtime.state_buffers import require_state
from liger_export.runtime.top_logits import TopLogits

__all__ = ["Row", "Slots"]


@dataclass(slots=True, eq=False)
class Row:
    """The state of one sequence.

    Attributes:
        position: Number of tokens read.
        index: The row of the buffers that holds it. It changes.
        turn: The set of buffers that holds it.
        is_running: True after ``join``.
    """

    position: int = 0
    index: int = 0
    turn: int = 0
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """A call that reads one token in each of the first rows.

    ``text`` holds the tokens in its first row and their positions in its second, int64 [2, size].
    """

    size: int
    text: Rows
    call: Call


class _Outputs:
    """The outputs of one call, for rows ``start`` to ``start + count``, until the next call."""

    def __init__(self, graph: Graph, tensors: dict[str, Rows], start: int, count: int) -> None:
        self.graph = graph
        self._tensors, self._start, self._count = tensors, start, count
        self._small: dict[str, Array] = {}  # outputs that are read for all rows at once: one copy from a GPU

    def predictions(self) -> list[Prediction]:
        """Return the prediction of each row."""
        return [_RowPrediction(self, index) for index in range(self._count)]

    def logits(self, index: int) -> Logits:
        logits: Logits = self._tensors["logits"].read(self._start + index)[0, 0]
        return logits

    def small(self, name: str, index: int) -> Array:
        if name not in self._small:
            self._small[name] = self._tensors[name].read(self._start, self._count)
        row: Array = self._small[name][index]
        return row


@dataclass(frozen=True, slots=True)
class _RowPrediction:
    """See ``Prediction``."""

    outputs: _Outputs
    index: int

    def last_logits(self) -> Logits:
        return self.outputs.logits(self.index)

    def argmax(self) -> int | None:
        graph = self.outputs.graph
        if not graph.computes_argmax:
            return None
        return graph.checked_argmax(int(self.outputs.small("most_likely", self.index)[0]), self.last_logits)

    def top_logits(self, temperature: float) -> TopLogits | None:
        graph = self.outputs.graph
        if not graph.computes_top_logits(temperature):
            return None
        row = self.outputs.small("candidates", self.index)
        return TopLogits.from_output(row, graph.manifest.model_config.vocab_size, temperature)


class Slots:
    """Rows of state for a number of sequences at once.

    Running rows are always the first ones, so a step is one call of the graph on as many rows as run. Rows whose
    prompts are being read are behind them. ONNX Runtime's CPU kernel can continue several sequences only by one token
    per call, so prompts are read row by row.

    On a GPU, steps are captured as CUDA graphs, for 1, 2, 4, 8, ... rows. A step then also runs the rows up to the next
    of these sizes, which hold no sequence.

    Attributes:
        count: Largest number of sequences.
        running: The rows that run, in the order of their indexes.
    """

    def __init__(self, graph: Graph, count: int, *, pads: bool | None = None) -> None:
        """Allocate the buffers.

        Args:
            graph: The graph.
            count: Largest number of sequences.
            pads: Run steps of 1, 2, 4, 8, ... rows only; None for what suits the device.
        """
        self.count = count
        self._pads = graph.device == CUDA if pads is None else pads
        self.running: list[Row] = []
        self._graph = graph
        self._cuda = Cuda.open() if graph.device == CUDA else None
        self._table = graph.manifest.state
        self._waiting: dict[int, Row] = {}  # rows that do not run, by index
        self._turn = 0  # of all running rows
        # One more row than sequences and padding need, so that a row can always be moved away.
        self._size = 1 + max(self._padded(running) + count - running for running in range(1, count + 1))
        first = [self._rows(entry.shape, entry.dtype) for entry in self._table]
        second = [
            rows if entry.past_name in graph.in_place else self._rows(entry.shape, entry.dtype)
            for entry, rows in zip(self._table, first, strict=True)
        ]
        self._sets = (first, second)
        self._outputs = {name: self._rows(shape, dtype) for name, (shape, dtype) in graph.row_outputs().items()}
        self._steps: dict[tuple[int, int], _Step] = {}

    @classmethod
    def of(cls, executor: Executor, count: int) -> "Slots":
        """Return slots on the weights of an executor.

        Raises:
            InputError: The executor is one of an engine directory or of a graph that takes one sequence.
        """
        if not isinstance(executor, DynamicExecutor):
            raise InputError(
                "An engine directory runs one sequence at a time.", "Open the package that it was built from."
            )
        if executor.lowering in ONE_SEQUENCE:
            raise InputError(
                f"The {executor.lowering} graph takes one sequence.", "Open the package with the lowering stock."
            )
        manifest, lowering, device = executor.graph.manifest, executor.lowering, executor.device
        return cls(Graph(executor.model, manifest, lowering=lowering, device=device), count)

    def use(self) -> None:
        """Prepare the thread that calls the other methods."""
        if self._cuda is not None:
            self._cuda.use()

    def open(self, position: int = 0, tensors: dict[str, Array] | None = None) -> Row:
        """Return a row for a sequence, in the state before the first token or in a saved one.

        Raises:
            InputError: The state does not fit the model.
        """
        if tensors is not None:
            require_state(self._table, position, tensors)
        row = Row(position, self._last_free())
        self._waiting[row.index] = row
        for entry, rows in zip(self._table, self._sets[0], strict=True):
            zeros = np.zeros((1, *entry.shape), dtype=numpy_dtype(entry.dtype))
            rows.write(row.index, zeros if tensors is None else tensors[entry.past_name])
        return row

    def read(self, row: Row, tokens: Tokens, temperature: float = 0.0) -> Prediction:
        """Read tokens of a prompt, int64 ``[T]``, in one call, into a row that does not run.

        Args:
            row: A row from ``open``.
            tokens: What to read.
            temperature: Temperature to compute top logits at; 0 for none.
        """
        self._graph.request_top_logits(temperature)
        text = self._new_text(len(tokens))
        text.write(0, np.array([tokens, np.arange(row.position, row.position + len(tokens))]))
        call = self._bind(text, row.turn, row.index, (1, len(tokens)))
        self._graph.run(call)
        row.position, row.turn = row.position + len(tokens), 1 - row.turn
        return _Outputs(self._graph, self._outputs, row.index, 1).predictions()[0]

    def join(self, row: Row) -> None:
        """Make a row run."""
        if not self.running:
            self._turn = row.turn
        target = len(self.running)
        if row.index != target:
            self._vacate(target)
        del self._waiting[row.index]
        self._move(row, target, self._turn)
        row.is_running = True
        self.running.append(row)

    def close(self, row: Row) -> None:
        """Give up a row."""
        if not row.is_running:
            del self._waiting[row.index]
            return
        last = self.running.pop()
        if last is not row:
            self.running[row.index] = last
            self._move(last, row.index, self._turn)

    def step(self, tokens: Sequence[int], temperatures: Sequence[float] = ()) -> list[Prediction]:
        """Read one token in each running row, in one call.

        Args:
            tokens: The tokens, in the order of ``running``.
            temperatures: Temperatures to compute top logits at, one per row; 0 for none. One call computes them at only
                one temperature: the most frequent.

        Returns:
            The predictions, in the same order. They are valid until the next call.
        """
        count = len(self.running)
        wanted = Counter(temperature for temperature in temperatures if temperature)
        self._graph.request_top_logits(wanted.most_common(1)[0][0] if wanted else 0.0)
        step = self._step(self._padded(count))
        for index in range(count, step.size):
            self._vacate(index)
        text = np.zeros((2, step.size), dtype=np.int64)
        text[:, :count] = tokens, [row.position for row in self.running]
        step.text.write(0, text)
        self._graph.run(step.call)
        self._turn = 1 - self._turn
        for row in self.running:
            row.position, row.turn = row.position + 1, self._turn
        return _Outputs(self._graph, self._outputs, 0, count).predictions()

    def read_state(self, row: Row) -> dict[str, Array]:
        """Return a copy of every state tensor of a row by input name, each ``[1, ...]``."""
        pairs = zip(self._table, self._sets[row.turn], strict=True)
        return {entry.past_name: rows.read(row.index).copy() for entry, rows in pairs}

    def _padded(self, count: int) -> int:
        """Return the number of rows in a step of ``count`` sequences."""
        return 1 << (count - 1).bit_length() if self._pads else count

    def _last_free(self) -> int:
        return next(index for index in reversed(range(len(self.running), self._size)) if index not in self._waiting)

    def _vacate(self, index: int) -> None:
        """Move the waiting row at an index away, if there is one."""
        row = self._waiting.get(index)
        if row is not None:
            self._move(row, self._last_free(), row.turn)
            del self._waiting[index]
            self._waiting[row.index] = row

    def _move(self, row: Row, index: int, turn: int) -> None:
        """Move a row to another index and set of buffers."""
        for source, target in zip(self._sets[row.turn], self._sets[turn], strict=True):
            if source is not target or row.index != index:
                source.move(row.index, target, index)
        row.index, row.turn = index, turn

    def _step(self, size: int) -> _Step:
        step = self._steps.get((size, self._turn))
        if step is None:
            text = self._new_text(size)
            graph_id = NO_CAPTURE if self._cuda is None else new_capture_id()
            step = _Step(size, text, self._bind(text, self._turn, 0, (size, 1), graph_id))
            self._steps[size, self._turn] = step
        return step

    def _bind(self, text: Rows, turn: int, start: int, shape: tuple[int, int], graph_id: int = NO_CAPTURE) -> Call:
        """Bind a call on tokens ``[B, T]`` that reads the rows from ``start`` on in set ``turn``."""
        count = shape[0]
        past, present = ([rows.view(start, count) for rows in self._sets[each]] for each in (turn, 1 - turn))
        outputs = {name: rows.view(start, count) for name, rows in self._outputs.items()}
        texts = [replace(text.view(row, 1), shape=shape) for row in range(2)]
        return self._graph.bind(texts, past, outputs, present, keep=1, graph_id=graph_id)

    def _rows(self, shape: tuple[int, ...], dtype: str) -> Rows:
        return new_rows(self._cuda, (self._size, *shape), dtype)

    def _new_text(self, length: int) -> Rows:
        return new_rows(self._cuda, (2, length), "int64")
