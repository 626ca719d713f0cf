"""Tensors of many rows at a fixed address, whose rows are read, written and moved one by one."""

from typing import Any, Protocol

import numpy as np

from liger_export.runtime.buffers import CUDA, Array, HostBuffer, View, new_buffer, rows_of
from liger_export.runtime.cuda import Cuda
from liger_export.runtime.dtypes import numpy_dtype

__all__ = ["Rows", "new_rows"]


class Rows(Protocol):
    """A tensor ``[N, ...]`` whose rows belong to different sequences."""

    def view(self, start: int, count: int) -> View:
        """Return rows as a tensor ``[count, ...]`` that can be bound. The rows must outlive the binding."""

    def read(self, start: int, count: int = 1) -> Array:
        """Return rows ``[count, ...]``. On a CPU this is the memory itself, not a copy."""

    def write(self, start: int, content: Array) -> None:
        """Replace rows by ``content``, ``[count, ...]`` in the tensor's dtype."""

    def move(self, source: int, to: "Rows", target: int) -> None:
        """Copy row ``source`` to row ``target`` of a tensor of the same kind, which may be this one."""


class _HostRows:
    """See ``Rows``."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.array = np.zeros(shape, dtype=numpy_dtype(dtype))
        self._buffer = HostBuffer(self.array)

    def view(self, start: int, count: int) -> View:
        return rows_of(self._buffer, start, count)

    def read(self, start: int, count: int = 1) -> Array:
        rows: Array = self.array[start : start + count]
        return rows

    def write(self, start: int, content: Array) -> None:
        self.array[start : start + len(content)] = content

    def move(self, source: int, to: Any, target: int) -> None:
        to.array[target] = self.array[source]


class _DeviceRows:
    """See ``Rows``."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: str) -> None:
        self._cuda = cuda
        self._buffer = new_buffer(CUDA, shape, dtype)

    def view(self, start: int, count: int) -> View:
        return rows_of(self._buffer, start, count)

    def read(self, start: int, count: int = 1) -> Array:
        rows = np.empty((count, *self._buffer.shape[1:]), dtype=self._buffer.dtype)
        self._cuda.fetch(self.view(start, count).address, rows)
        return rows

    def write(self, start: int, content: Array) -> None:
        rows = np.ascontiguousarray(content, dtype=self._buffer.dtype)
        self._cuda.store(rows, self.view(start, len(rows)).address)

    def move(self, source: int, to: Any, target: int) -> None:
        row = self.view(source, 1)
        nbytes = int(np.prod(row.shape)) * row.dtype.itemsize
        self._cuda.move(row.address, to.view(target, 1).address, nbytes)


def new_rows(cuda: Cuda | None, shape: tuple[int, ...], dtype: str) -> Rows:
    """Allocate zeroed rows on the GPU, or without one on the CPU. ``dtype`` is a name from the state table."""
    return _HostRows(shape, dtype) if cuda is None else _DeviceRows(cuda, shape, dtype)
