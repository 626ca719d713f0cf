"""Tensors that stay where they are for a session's life, in main memory or on a GPU, and states saved from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from liger_export.errors import InputError
from liger_export.ort import ort
from liger_export.runtime.dtypes import element_type, numpy_dtype

__all__ = ["CPU", "CUDA", "Buffer", "HostBuffer", "SavedState", "bind", "new_buffer", "row_of"]

CPU, CUDA = "cpu", "cuda"

Array = npt.NDArray[Any]


class Buffer(Protocol):
    """A tensor at a fixed address.

    Attributes:
        value: the memory's owner; of a bfloat16 tensor it says no more than that it has 16 bits.
        address: of its first byte, in its device's memory.
        shape: of the tensor.
        dtype: as numpy knows it; see ``dtypes``.
    """

    value: ort.OrtValue
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self) -> Array:
        """Its content as an array; on a CPU the memory itself, not a copy."""

    def write(self, content: Array) -> None:
        """Replace its content by that of an array of its shape and dtype."""

    def clear(self) -> None:
        """Fill it with zeros."""


class HostBuffer:
    """An array that a CPU addresses. See ``Buffer``."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.value = ort.OrtValue.ortvalue_from_numpy(array)
        self.address: int = array.ctypes.data
        self.shape, self.dtype = array.shape, array.dtype

    def read(self) -> Array:
        """As ``Buffer``."""
        return self._array

    def write(self, content: Array) -> None:
        """As ``Buffer``."""
        self._array[...] = content

    def clear(self) -> None:
        """As ``Buffer``."""
        self._array.fill(0)


class _DeviceBuffer:
    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._zeros = np.zeros(shape, dtype=numpy_dtype(dtype))  # pages that are only read take no memory
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
    """A buffer of zeros on ``CPU`` or ``CUDA``, of a dtype that the state table names."""
    return HostBuffer(np.zeros(shape, dtype=numpy_dtype(dtype))) if device == CPU else _DeviceBuffer(shape, dtype)


@dataclass(slots=True)
class _Row:
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def row_of(buffer: Buffer, index: int) -> _Row:
    """Row ``index`` of a buffer [N, T], as a tensor [1, T] that can be bound."""
    width = buffer.shape[1]
    return _Row(buffer.address + index * width * buffer.dtype.itemsize, (1, width), buffer.dtype)


def bind(to: Callable[..., None], name: str, buffer: Buffer | _Row, device: str) -> None:
    """Bind a buffer, whose owner must outlive the binding.

    By its address, because no ``OrtValue`` made from numpy's memory on a GPU can be of bfloat16.

    Args:
        to: ``bind_input`` or ``bind_output`` of an ``IOBinding``.
        name: of the graph's input or output.
        buffer: the tensor.
        device: where it lies, ``CPU`` or ``CUDA``.
    """
    to(name, device, 0, element_type(buffer.dtype), buffer.shape, buffer.address)


@dataclass(frozen=True, slots=True)
class SavedState:
    """Everything a sequence has left behind: carry it to another session, process or backend.

    Attributes:
        position: tokens seen.
        tensors: by the name of the graph input that takes it, each [1, ...]; bfloat16 as its bits, uint16, in the file
            too (``runtime.dtypes``).
    """

    position: int
    tensors: dict[str, Array]

    def save(self, path: str | Path) -> None:
        """Write to a ``.npz`` file."""
        with Path(path).open("wb") as stream:
            np.savez(stream, position=np.array(self.position), **self.tensors)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: str | Path) -> "SavedState":
        """Read what ``save`` wrote. Raises InputError if the file is not that."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(int(stored["position"]), {name: stored[name] for name in stored.files if name != "position"})
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no saved state ({error}).", "Pass a file that save wrote.") from error
