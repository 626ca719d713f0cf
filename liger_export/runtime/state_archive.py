"""Reading of saved states in the format of version 0.1.0 and older: ``.npz`` archives."""

import os
from collections.abc import Mapping
from hashlib import sha256
from math import prod
from pathlib import Path
from struct import Struct
from typing import IO
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from liger_export.files import require_regular
from liger_export.runtime.buffers import Array

__all__ = ["is_archive", "read_archive"]

CHECKSUM = "sha256"  # of all other arrays; the oldest files have none
SUFFIX = ".npy"
SIGNATURE = b"PK"
END = Struct("<4s4H2LH")  # the end of an archive without a comment; its fifth value is the number of members


def is_archive(path: Path) -> bool:
    """Return True for a file that begins like an archive. Raises OSError."""
    require_regular(path)
    with path.open("rb") as stream:
        return stream.read(len(SIGNATURE)) == SIGNATURE


def read_archive(path: Path) -> dict[str, Array]:
    """Read every array of an archive. They need no more memory than the file.

    Raises:
        OSError, EOFError, BadZipFile, ValueError: It is another file, or has changed since it was written.
    """
    arrays = _read_arrays(path)
    digest = arrays.pop(CHECKSUM, None)
    if digest is not None and str(digest) != _digest(arrays):
        raise ValueError("it has changed since it was written: its SHA-256 differs")
    return arrays


def _read_arrays(path: Path) -> dict[str, Array]:
    with ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != _recorded_count(path):
            raise ValueError("it has lost arrays")
        if any(member.compress_type != ZIP_STORED for member in members):
            raise ValueError("its arrays are compressed")
        if len({member.filename for member in members}) != len(members):
            raise ValueError("it holds two arrays of one name")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its arrays are larger than the file")
        arrays = {}
        for member in members:
            with archive.open(member) as stream:
                arrays[member.filename.removesuffix(SUFFIX)] = _read_array(stream, member.file_size)
        return arrays


def _recorded_count(path: Path) -> int:
    """Return how many arrays the archive's end records. zipfile skips members whose entry has a damaged length."""
    with path.open("rb") as stream:
        stream.seek(-END.size, os.SEEK_END)
        count: int = END.unpack(stream.read())[4]
    return count


def _read_array(stream: IO[bytes], nbytes: int) -> Array:
    """Read one array, if the size in its header is the size of what follows."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array has an unknown format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if is_fortran or dtype.hasobject or not dtype.isnative:
        raise ValueError("an array is laid out differently")
    if prod(shape) * dtype.itemsize != nbytes - stream.tell():
        raise ValueError("an array has another size than its header says")
    return np.frombuffer(bytearray(stream.read()), dtype).reshape(shape)


def _digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of arrays, in the order of their names."""
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
