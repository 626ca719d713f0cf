"""The state of one sequence in fixed buffers."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from liger_export.errors import InputError
from liger_export.runtime.buffers import Array, Buffer
from liger_export.runtime.dtypes import numpy_dtype
from liger_export.state import MAX_POSITION, StateTensor

__all__ = ["StateBuffers", "require_state", "require_tensors"]


class StateBuffers:
    """The state tensors of one sequence, double-buffered, and its position.

    Each call of a graph reads one set of buffers and writes the other, then ``advance`` swaps them. Tensors that the
    graph updates in place have a single buffer, which belongs to both sets. Buffers never move.

    Attributes:
        sets: The two sets, each with one buffer per entry of the state table.
        turn: Index of the set that holds the current state.
        position: Number of tokens read. Only ``advance``, ``write`` and ``clear`` change it.
    """

    def __init__(
        self, table: Sequence[StateTensor], new: Callable[[StateTensor], Buffer], in_place: Collection[str] = ()
    ) -> None:
        """Allocate the buffers.

        Args:
            table: The state tensors.
            new: Allocates a zeroed buffer ``[1, ...]`` for a tensor.
            in_place: Input names of the tensors that the graph updates in place.
        """
        self._table = table
        first = [new(entry) for entry in table]
        second = [
            buffer if entry.past_name in in_place else new(entry) for entry, buffer in zip(table, first, strict=True)
        ]
        self.sets = (first, second)
        self.turn = 0
        self.position = 0

    def advance(self, count: int) -> None:
        """Record that a call has read ``count`` tokens and written the other set."""
        self.turn, self.position = 1 - self.turn, self.position + count

    def read(self) -> dict[str, Array]:
        """Return a copy of every tensor by input name, each ``[1, ...]``."""
        return {entry.past_name: buffer.read().copy() for entry, buffer in self._current()}

    def write(self, position: int, tensors: dict[str, Array]) -> None:
        """Replace the state.

        Raises:
            InputError: The position is not an integer from 0 to ``MAX_POSITION``, or a tensor is missing or has another
                shape or dtype. The state is unchanged.
        """
        require_state(self._table, position, tensors)
        for entry, buffer in self._current():
            buffer.write(tensors[entry.past_name])
        self.position = int(position)

    def clear(self) -> None:
        """Return to the state before the first token."""
        for buffer in self.sets[self.turn]:
            buffer.clear()
        self.position = 0

    def addresses(self) -> list[int]:
        """Return the address of every buffer, sorted."""
        return sorted({buffer.address for buffers in self.sets for buffer in buffers})

    def _current(self) -> list[tuple[StateTensor, Buffer]]:
        return list(zip(self._table, self.sets[self.turn], strict=True))


def require_state(table: Sequence[StateTensor], position: int, tensors: dict[str, Array]) -> None:
    """Check that a position and tensors are the state of one sequence.

    Raises:
        InputError: The position is not an integer from 0 to ``MAX_POSITION``, or a tensor is missing or has another
            shape or dtype than the table's.
    """
    if not isinstance(position, int | np.integer) or not 0 <= position <= MAX_POSITION:
        raise InputError(f"The saved state has position {position}.", "Load a state that save wrote.")
    require_tensors(table, tensors)


def require_tensors(table: Sequence[StateTensor], tensors: Mapping[str, Array], batch: int = 1) -> None:
    """Check that tensors are the states of ``batch`` sequences.

    Raises:
        InputError: A tensor is missing or has another shape or dtype than the table's.
    """
    if not isinstance(tensors, Mapping):
        raise InputError(f"{tensors!r} is not a mapping of state tensors.", "Pass the tensors of a SavedState.")
    for entry in table:
        tensor, shape = tensors.get(entry.past_name), (batch, *entry.shape)
        if not isinstance(tensor, np.ndarray) or tensor.shape != shape or tensor.dtype != numpy_dtype(entry.dtype):
            raise InputError(
                f"The state's {entry.past_name} is not {entry.dtype} {list(shape)}.",
                "Load a state that the same model saved.",
            )
