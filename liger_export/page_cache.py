"""Files in the page cache of Linux, in large pages. Elsewhere these functions do nothing.

The kernel keeps in single pages of 4 KB what was written, copied or downloaded, and what a mapping brings in piece by
piece. Mapped weights in them are read at two thirds of the speed of large pages of 2 MB, which a file system such as
ext4, XFS or Btrfs has.
"""

import mmap
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np

__all__ = ["drop_cached", "read_ahead"]

LARGE = 2 << 20
READ_BYTES = 1 << 22
PROBES = 16
MOST = 0.7  # of a file: less than this in large pages is too little; the last page of a file can be a small one


def drop_cached(file: Path) -> None:
    """Write a file to the disk and drop it from the page cache, except for what a process has mapped."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_ahead(file: Path) -> bool:
    """Read a file from start to end if it is not in the page cache, or only in small pages. Returns True if it did.

    A file in small pages is dropped and read from the disk, unless the file system has no large pages.
    """
    with file.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if _is_all_cached(stream, size) and (
            _share_in_large_pages(file, 0, size) >= MOST or not _can_have_large_pages(file, stream, size)
        ):
            return False
        drop_cached(file)
        if _is_all_cached(stream, size):  # another process has it mapped
            return False
        _fill_large_pages(stream, 0, size)
        if not _is_all_cached(stream, size):
            buffer = memoryview(bytearray(READ_BYTES))
            while stream.readinto(buffer):
                pass
    return True


def _fill_large_pages(stream: FileIO, start: int, size: int) -> None:
    """Map a part of a file, and touch all of it in order for the kernel to read it in large pages, if it has any."""
    if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    with suppress(OSError), mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ, offset=start) as mapped:
        mapped.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, LARGE):
            mapped[at]


def _is_all_cached(stream: FileIO, size: int) -> bool:
    """Return False if a read at any of ``PROBES`` places would have to wait for the disk."""
    return all(_is_cached(stream.fileno(), size * probe // PROBES) for probe in range(PROBES))


def _is_cached(descriptor: int, offset: int) -> bool:
    """Return False if a read at an offset would have to wait for the disk; True also where no system call tells."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # the file system does not know the flag
        return True
    return True


def _can_have_large_pages(file: Path, stream: FileIO, size: int) -> bool:
    """Bring one large page of a file into the cache anew, and tell whether it is one."""
    start = size // 2 // LARGE * LARGE
    if not hasattr(mmap, "MADV_HUGEPAGE") or size < 4 * LARGE:
        return False
    os.posix_fadvise(stream.fileno(), start, LARGE, os.POSIX_FADV_DONTNEED)
    _fill_large_pages(stream, start, LARGE)
    return _share_in_large_pages(file, start, LARGE) == 1


def _share_in_large_pages(file: Path, start: int, size: int) -> float:
    """Map a part of a file, touch it, and return the share of its whole large pages that the kernel mapped as such."""
    size = size // LARGE * LARGE
    if size == 0:
        return 1.0
    mapped = np.memmap(file, np.uint8, "r", start, (size,))
    mapped[::LARGE].max()
    return _bytes_in_large_pages(mapped.ctypes.data) / size


def _bytes_in_large_pages(address: int) -> int:
    """``FilePmdMapped`` of the mapping that starts at an address, in bytes; 0 where nothing tells."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    is_mapping = False
    for line in lines:
        name, *values = line.split()
        if not name.endswith(":"):
            is_mapping = int(name.split("-")[0], 16) == address
        elif is_mapping and name == "FilePmdMapped:":
            return int(values[0]) * 1024
    return 0
