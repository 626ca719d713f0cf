"""Partial outputs: hidden siblings that are written first and then renamed.

Each has a lock file, which its writer locks. The operating system releases the lock when the writer ends, even if it is
killed. So a partial output whose lock can be taken is a leftover, wherever its writer ran.
"""

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from liger_export.errors import OutputError

__all__ = ["old_of", "output_error", "output_errors", "partial_of", "remove_leftovers", "sync", "sync_tree"]

FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)


@contextmanager
def partial_of(path: Path) -> Iterator[Path]:
    """Yield a new name beside ``path`` to write to, locked. At the end, whatever has that name is removed.

    Leftovers of ``path`` are removed first.

    Args:
        path: the output, an absolute path in an existing directory.
    """
    remove_leftovers(path)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
    lock, descriptor = _lock_of(partial), None
    try:  # starts before the lock file exists, so that an interrupt at any moment removes it
        descriptor = _take(lock)
        yield partial
    finally:
        removed = _discard(partial, path)
        if descriptor is not None:
            os.close(descriptor)
        if removed:
            lock.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of ``path`` left behind, and put back an output that one was about to replace.

    Partial outputs of running processes stay. So do all on file systems without locks.
    """
    pattern = re.compile(rf"(\.{re.escape(path.name)}\.partial-[0-9a-f]{{16}})\.lock")
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for match in filter(None, map(pattern.fullmatch, os.listdir(path.parent))):
            _remove_leftover(path.with_name(match[1]), path)


def old_of(partial: Path) -> Path:
    """Return the name of an output while ``partial`` takes its place, where two names cannot be exchanged."""
    return partial.with_name(f"{partial.name}.old")


def sync_tree(directory: Path) -> None:
    """Write a directory and everything in it to the disk."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            sync_tree(entry)
        elif entry.is_file():
            sync(entry)
    sync(directory)


def sync(path: Path) -> None:
    """Write a file, or the names in a directory, to the disk, so that they survive a power failure."""
    if not path.is_dir():
        _sync(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        return
    with suppress(OSError):  # not every file system can do this for a directory
        _sync(path, os.O_RDONLY)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise OutputError if the disk of ``path`` is full or read-only."""
    try:
        yield
    except OSError as error:
        if error.errno in (*FULL, *UNWRITABLE):
            raise output_error(path, error) from error
        raise


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the error for an output that cannot be written."""
    fix = "Free some disk space or choose another disk." if error.errno in FULL else "Choose a writable directory."
    return OutputError(f"{path} cannot be written: {error.strerror}.", fix)


def _lock_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.lock")


def _take(lock: Path) -> int:
    """Create a lock file and lock it. Returns its descriptor."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor, wait=True)
        if _is_open_file(descriptor, lock):
            return descriptor
        os.close(descriptor)  # another process removed it as a leftover before it was locked


def _remove_leftover(partial: Path, path: Path) -> None:
    lock = _lock_of(partial)
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:  # removed meanwhile, or another user's
        return
    try:
        if _lock(descriptor, wait=False) and _is_open_file(descriptor, lock) and _discard(partial, path):
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int, *, wait: bool) -> bool:
        return False

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> bool:
        """Lock an open file. Returns False if another process holds the lock or the file system has no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            return False
        return True


def _is_open_file(descriptor: int, path: Path) -> bool:
    """Return True if ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _discard(partial: Path, path: Path) -> bool:
    """Remove a partial output, and undo a replacement that did not end. Returns False if something is left."""
    old = old_of(partial)
    with suppress(OSError):
        if os.path.lexists(old) and not os.path.lexists(partial):  # path has been replaced, so the old one can go
            old.rename(partial)
        elif os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
    if os.path.lexists(old):  # meanwhile another output has appeared at path
        return False
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        with suppress(OSError):
            partial.unlink()
    return not os.path.lexists(partial)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
