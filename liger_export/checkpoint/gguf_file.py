"""GGUF files: a strict reader of the header, and rows of tensors as float32.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is compared
with the size of the file, and with a limit for headers, before anything of that size is read.
"""

import math
import struct
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from liger_export.checkpoint.gguf_metadata import Metadata, Value
from liger_export.errors import CheckpointError, UnsupportedModelError
from liger_export.extras import required_extra

__all__ = ["DOWNLOAD", "GgufFile", "StoredTensor"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_HEADER = 64 << 20  # bytes; the largest vocabularies need about 20 MB
MIN_PAIR_BYTES = 8 + 4 + 1  # an empty key, a type and one byte
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name and one dimension
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}  # struct's codes
BOOLEAN, STRING, ARRAY = 7, 8, 9
DOWNLOAD = "Download or copy the file again."

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Quantization:
    """A tensor type that the gguf package can dequantize.

    Attributes:
        name: llama.cpp's name, such as ``Q4_K``.
        block: number of values in a block.
        nbytes: bytes of a block.
    """

    name: str
    block: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Location, shape and type of a tensor in a GGUF file.

    Attributes:
        file: the GGUF file.
        shape: the tensor's shape, rows first. GGUF lists the dimensions in the opposite order.
        quantization: how the values are stored.
        offset: position of the first byte in the file.
    """

    file: Path
    shape: tuple[int, ...]
    quantization: Quantization
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is a whole number of blocks."""
        return self.shape[-1] // self.quantization.block * self.quantization.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Read rows ``start`` to ``stop`` of a matrix, or these values of a vector.

        Raises:
            CheckpointError: the file has become shorter.
        """
        if len(self.shape) == 1:
            return self._dequantized(self.offset, 1)[0, start:stop]
        return self._dequantized(self.offset + start * self.row_bytes, stop - start)

    def _dequantized(self, offset: int, rows: int) -> npt.NDArray[np.float32]:
        from gguf import GGMLQuantizationType, dequantize  # installed: the quantization comes from it

        stored = bytearray(rows * self.row_bytes)
        with self.file.open("rb") as stream:
            stream.seek(offset)
            count = stream.readinto(stored)
        if count < len(stored):
            raise CheckpointError(f"{self.file} has become shorter.", DOWNLOAD)
        array = np.frombuffer(stored, np.uint8).reshape(rows, self.row_bytes)
        with np.errstate(over="ignore", invalid="ignore"):  # `convert` reports values that are not finite
            values: npt.NDArray[np.float32] = dequantize(array, GGMLQuantizationType[self.quantization.name])
        return values


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        metadata: keys and values.
        tensors: by GGUF's names, such as ``blk.0.attn_q.weight``.
    """

    path: Path
    metadata: Metadata
    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read the header, without tensor data.

        Raises:
            CheckpointError: the file is missing, damaged or not a GGUF file.
            UnsupportedModelError: its version or the type of a tensor is not supported.
            EnvironmentMismatchError: the gguf package is not installed.
        """
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file.", "Pass the path of a GGUF file.")
        with path.open("rb") as stream:
            return _Reader(path, stream).header()


class _Reader:
    """Reads the values of a header in order, none beyond the end of the file."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._size = path.stat().st_size
        self._end = min(self._size, MAX_HEADER)
        self._position = 0

    def header(self) -> GgufFile:
        if self._bytes(4, "magic") != MAGIC:
            raise CheckpointError(f"{self._path} is not a GGUF file: it does not start with 'GGUF'.", DOWNLOAD)
        self._check_version(self._integer("I"))
        tensor_count = self._count(MIN_TENSOR_BYTES, "tensors")
        pair_count = self._count(MIN_PAIR_BYTES, "metadata pairs")
        values: dict[str, Value] = {}
        for _ in range(pair_count):
            key = self._string("a key")
            self._add(values, key, self._value(self._integer("I"), key))
        metadata = Metadata(self._path, values)
        described: dict[str, tuple[tuple[int, ...], Quantization, int]] = {}
        for _ in range(tensor_count):
            name = self._string("a tensor name")
            self._add(described, name, self._tensor(name))
        return GgufFile(self._path, metadata, self._located(described, _alignment(metadata)))

    def _check_version(self, version: int) -> None:
        if version in VERSIONS:
            return
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        described = f"has version {version}" if swapped not in VERSIONS else "is big-endian"
        raise UnsupportedModelError(
            f"{self._path} {described}. Little-endian GGUF files of version 2 and 3 are supported.",
            "Download a current file of the model, or convert the model again with a current llama.cpp.",
        )

    def _tensor(self, name: str) -> tuple[tuple[int, ...], Quantization, int]:
        """Shape, quantization and offset in the data section of the next tensor."""
        dimensions = self._integer("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"{name} has {dimensions} dimensions")
        shape = tuple(reversed([self._integer("Q") for _ in range(dimensions)]))
        number, offset = self._integer("I"), self._integer("Q")
        quantization = _quantizations().get(number)
        if quantization is None:
            raise UnsupportedModelError(
                f"{self._path} stores {name} in a type that the installed gguf package cannot dequantize "
                f"({_type_name(number)}).",
                "Use a file of another quantization, such as Q8_0 or Q4_K_M, or upgrade the gguf package.",
            )
        if 0 in shape:
            raise self._damaged(f"{name} has shape {list(shape)}")
        if shape[-1] % quantization.block:
            raise self._damaged(
                f"{name} has rows of {shape[-1]} values, which is not a multiple of {quantization.name}'s block of "
                f"{quantization.block}"
            )
        return shape, quantization, offset

    def _located(
        self, described: dict[str, tuple[tuple[int, ...], Quantization, int]], alignment: int
    ) -> dict[str, StoredTensor]:
        """The tensors at their positions in the file, which must be inside it and must not overlap."""
        data = math.ceil(self._position / alignment) * alignment
        tensors = {}
        for name, (shape, quantization, offset) in described.items():
            tensor = StoredTensor(self._path, shape, quantization, data + offset)
            if offset % alignment:
                raise self._damaged(f"{name} starts at {offset}, which is not a multiple of {alignment}")
            if tensor.offset + tensor.nbytes > self._size:
                raise self._damaged(
                    f"{name} ends at byte {tensor.offset + tensor.nbytes:,}, but the file has {self._size:,}"
                )
            tensors[name] = tensor
        in_order = sorted(tensors, key=lambda name: tensors[name].offset)
        for first, second in pairwise(in_order):
            if tensors[first].offset + tensors[first].nbytes > tensors[second].offset:
                raise self._damaged(f"{first} and {second} overlap")
        return tensors

    def _value(self, kind: int, key: str) -> Value:
        if kind in SCALARS:
            return self._unpack(SCALARS[kind], key)[0]
        if kind == BOOLEAN:
            return self._booleans(1, key)[0]
        if kind == STRING:
            return self._string(key)
        if kind == ARRAY:
            return self._array(self._integer("I"), key)
        raise self._damaged(f"{key} has the unknown type {kind}")

    def _array(self, kind: int, key: str) -> Value:
        if kind in SCALARS:
            count = self._count(struct.calcsize(SCALARS[kind]), key)
            return list(self._unpack(f"{count}{SCALARS[kind]}", key))
        if kind == BOOLEAN:
            return self._booleans(self._count(1, key), key)
        if kind == STRING:
            return [self._string(key) for _ in range(self._count(8, key))]
        raise self._damaged(f"{key} is an array of the unsupported type {kind}")

    def _booleans(self, count: int, key: str) -> list[bool]:
        stored = self._bytes(count, key)
        if not set(stored) <= {0, 1}:
            raise self._damaged(f"{key} has a boolean that is neither 0 nor 1")
        return [value == 1 for value in stored]

    def _count(self, item_bytes: int, what: str) -> int:
        """A number of items of at least ``item_bytes``, which must fit in the rest of the header."""
        count = self._integer("Q")
        if count * item_bytes > self._end - self._position:
            raise self._damaged(f"{what}: {count:,} are announced, which do not fit in {self._end:,} bytes")
        return count

    def _string(self, what: str) -> str:
        try:
            return self._bytes(self._integer("Q"), what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is not valid UTF-8") from None

    def _integer(self, code: str) -> int:
        return int(self._unpack(code, "a count")[0])

    def _unpack(self, codes: str, what: str) -> tuple[int | float, ...]:
        return struct.unpack(f"<{codes}", self._bytes(struct.calcsize(f"<{codes}"), what))

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._end - self._position:
            limit = "it ends" if self._end == self._size else f"its header exceeds {MAX_HEADER:,} bytes"
            raise self._damaged(f"{limit} within {what}")
        self._position += count
        return self._stream.read(count)

    def _add(self, items: dict[str, Item], name: str, item: Item) -> None:
        if name in items:
            raise self._damaged(f"it contains {name} twice")
        items[name] = item

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is damaged: {what}.", DOWNLOAD)


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise CheckpointError(f"{metadata.path} is damaged: its alignment is {alignment}.", DOWNLOAD)
    return alignment


@cache
def _quantizations() -> dict[int, Quantization]:
    """The tensor types that the gguf package can dequantize, by their numbers."""
    with required_extra("export", "Reading a GGUF file"):
        from gguf import GGML_QUANT_SIZES, dequantize
    known = {}
    for kind, (block, nbytes) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, nbytes), np.uint8), kind)
        except NotImplementedError:
            continue
        known[int(kind)] = Quantization(kind.name, block, nbytes)
    return known


def _type_name(number: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return str(GGMLQuantizationType(number).name)
    except ValueError:
        return f"number {number}"
