"""Tensors at fixed addresses, in main memory or on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from liger_export.ort import ort
from liger_export.runtime.dtypes import element_type, numpy_dtype

__all__ = ["CPU", "CUDA", "Array", "Buffer", "HostBuffer", "View", "bind", "new_buffer", "rows_of"]

CPU, CUDA = "cpu", "cuda"

Array = npt.NDArray[Any]


class Buffer(Protocol):
    """A tensor at a fixed address.

    Attributes:
        value: Owner of the memory. For a bfloat16 tensor its element type is only a 16-bit stand-in.
        address: Address of the first byte in the device's memory.
        shape: Shape of the tensor.
        dtype: numpy's dtype of the tensor; see ``dtypes``.
    """

    value: ort.OrtValue
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self) -> Array:
        """Return the content as an array. On a CPU this is the memory itself, not a copy."""

    def write(self, content: Array) -> None:
        """Replace the content. The array must have the buffer's shape and dtype."""

    def clear(self) -> None:
        """Fill the buffer with zeros."""


class HostBuffer:
    """An array that the CPU can access. See ``Buffer``."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.value = ort.OrtValue.ortvalue_from_numpy(array)
        self.address: int = array.ctypes.data
        self.shape, self.dtype = array.shape, array.dtype

    def read(self) -> Array:
        """See ``Buffer``."""
        return self._array

    def write(self, content: Array) -> None:
        """See ``Buffer``."""
        self._array[...] = content

    def clear(self) -> None:
        """See ``Buffer``."""
        self._array.fill(0)


class _DeviceBuffer:
    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._zeros = np.zeros(shape, dtype=numpy_dtype(dtype))  # pages that are never written take no memory
        self.value = ort.OrtValue.ortvalue_from_numpy(self._zeros, "cuda", 0)
        self.address: int = self.value.data_ptr()
        self.shape, self.dtype = self._zeros.shape, self._zeros.dtype

    def read(self) -> Array:
        content: Array = self.value.numpy()
        return content

    def write(self, content: Array) -> None:
        self.value.update_inplace(np.ascontiguousarray(content, dtype=self._zeros.dtype))

    def clear(self) -> None:
        self.value.update_inplace(self._zeros)


def new_buffer(device: str, shape: tuple[int, ...], dtype: str) -> Buffer:
    """Allocate a zeroed buffer on ``CPU`` or ``CUDA``. ``dtype`` is a name from the state table."""
    return HostBuffer(np.zeros(shape, dtype=numpy_dtype(dtype))) if device == CPU else _DeviceBuffer(shape, dtype)


@dataclass(frozen=True, slots=True)
class View:
    """Part of a buffer, as a tensor that can be bound. See ``Buffer``."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def rows_of(buffer: Buffer, start: int, count: int = 1) -> View:
    """Return ``count`` rows of a buffer ``[N, ...]`` as a tensor ``[count, ...]``."""
    width = buffer.shape[1:]
    return View(buffer.address + start * prod(width) * buffer.dtype.itemsize, (count, *width), buffer.dtype)


def bind(to: Callable[..., None], name: str, buffer: Buffer | View, device: str) -> None:
    """Bind a buffer, which must outlive the binding.

    The buffer is bound by its address, because an ``OrtValue`` on a GPU made from a numpy array cannot be bfloat16.

    Args:
        to: ``bind_input`` or ``bind_output`` of an ``IOBinding``.
        name: Name of the graph's input or output.
        buffer: The tensor.
        device: The buffer's device, ``CPU`` or ``CUDA``.
    """
    to(name, device, 0, element_type(buffer.dtype), buffer.shape, buffer.address)
