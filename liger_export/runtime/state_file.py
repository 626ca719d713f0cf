"""Files of named arrays and text: safetensors, with a hash of everything in them.

The library of that name belongs to the exporter. The format is a length, a JSON header and the bytes of all tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from liger_export.files import new_file, require_regular
from liger_export.runtime.buffers import Array

__all__ = ["StateFile", "read_file", "read_header", "read_tensor", "write_file"]

NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64", "int32": "I32"}
DTYPES = {name: np.dtype(dtype) for dtype, name in NAMES.items()}  # bfloat16 as bits: see ``runtime.dtypes``
METADATA, CHECKSUM = "__metadata__", "sha256"
LENGTH_BYTES, ALIGNMENT = 8, 64
MOST_HEADER_BYTES = 1 << 24  # a state has some hundred tensors


@dataclass(frozen=True, slots=True)
class StateFile:
    """The header of a file.

    Attributes:
        metadata: Text by name.
        entries: Dtype, shape, and first and last byte of each tensor by name.
        data: Offset of the first tensor in the file.
    """

    metadata: dict[str, str]
    entries: dict[str, tuple[np.dtype[Any], tuple[int, ...], int, int]]
    data: int


def write_file(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write tensors and text, as a whole or not at all. Raises OutputError."""
    stored = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    header: dict[str, Any] = {METADATA: {**metadata, CHECKSUM: _digest(stored, metadata)}}
    start = 0
    for name, tensor in stored.items():
        stop = start + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    with new_file(path) as file, file.open("wb") as stream:
        stream.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for tensor in stored.values():
            stream.write(tensor.tobytes())


def read_file(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read all tensors and the text of a file. They need no more memory than the file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is another file, or has changed since it was written.
    """
    require_regular(path)
    with path.open("rb") as stream:
        header = read_header(stream)
        content = np.empty(max((stop for *_, stop in header.entries.values()), default=0), dtype=np.uint8)
        stream.seek(header.data)
        if stream.readinto(content.data) != len(content):
            raise ValueError("it is cut off")
    tensors = {
        name: _view(content[start:stop], dtype, shape) for name, (dtype, shape, start, stop) in header.entries.items()
    }
    metadata = dict(header.metadata)
    if metadata.pop(CHECKSUM, None) != _digest(tensors, metadata):
        raise ValueError("it has changed since it was written: its SHA-256 differs")
    return tensors, metadata


def read_header(stream: IO[bytes]) -> StateFile:
    """Read the header of an open file. It is not compared with the hash. Raises ValueError for another file."""
    size = stream.seek(0, 2)
    stream.seek(0)
    length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    data = LENGTH_BYTES + length
    if not 0 < length <= min(size - LENGTH_BYTES, MOST_HEADER_BYTES):
        raise ValueError("its header is cut off")
    try:
        header = json.loads(stream.read(length))
        metadata = header.pop(METADATA)
        if not all(isinstance(part, str) for item in metadata.items() for part in item):
            raise ValueError("its metadata is not text")
        entries = {name: _entry(entry) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header is damaged ({error})") from error
    ends = [0, *(stop for *_, stop in entries.values())]
    if [start for *_, start, _ in entries.values()] != ends[:-1] or ends[-1] != size - data:
        raise ValueError("its tensors do not fill the file")
    return StateFile(metadata, entries, data)


def read_tensor(stream: IO[bytes], header: StateFile, name: str) -> Array:
    """Read one tensor. Raises KeyError if there is none of that name."""
    dtype, shape, start, stop = header.entries[name]
    stream.seek(header.data + start)
    return np.frombuffer(bytearray(stream.read(stop - start)), dtype).reshape(shape)


def _view(content: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return bytes as a tensor: a view, unless the tensor would not be aligned."""
    aligned = content if content.ctypes.data % dtype.itemsize == 0 else content.copy()
    return aligned.view(dtype).reshape(shape)


def _entry(entry: Mapping[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("a size is not a number")
    if prod(shape) * dtype.itemsize != stop - start:
        raise ValueError("a tensor has another size than its shape says")
    return dtype, shape, start, stop


def _digest(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the text, and of the names, dtypes, shapes and bytes of all tensors, each in the order of names."""
    digest = sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{json.dumps(name)} {tensor.dtype.str} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
