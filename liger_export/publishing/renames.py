"""Renames that replace nothing, or exchange two names in one step: ``renameat2`` on Linux, ``renamex_np`` on macOS."""

import ctypes
import errno
import os
import sys
from pathlib import Path

__all__ = ["exchange", "rename_new"]

AT_FDCWD = -100
NO_REPLACE, EXCHANGE = (4, 2) if sys.platform == "darwin" else (1, 2)
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def rename_new(directory: Path, path: Path) -> bool:
    """Rename a directory to ``path``. Returns False, and renames nothing, if ``path`` exists.

    Without support of the system, an empty directory that appears at ``path`` during the call is replaced.
    """
    try:
        if _rename(directory, path, NO_REPLACE):
            return True
        if os.path.lexists(path):
            return False
        directory.rename(path)
    except OSError as error:
        if error.errno in TAKEN and os.path.lexists(path):
            return False
        raise
    return True


def exchange(first: Path, second: Path) -> bool:
    """Exchange what two names refer to. Returns False if the system or the file system cannot do this in one step."""
    return _rename(first, second, EXCHANGE)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Rename with flags. Returns False if they are not supported. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, flags)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in UNSUPPORTED:
        raise OSError(number, os.strerror(number), str(source), None, str(target))
    return not failed
