"""Directories that are expensive to make, made once per test run, even if pytest-xdist runs several processes."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["made_once"]


def made_once(name: str, make: Callable[[Path], object], factory: pytest.TempPathFactory) -> Path:
    """Return a directory that the first caller in a test run makes and that all others share.

    Args:
        name: name of the directory, unique in the test run.
        make: function that fills an empty directory.
        factory: the fixture ``tmp_path_factory``.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the directory that all workers of a run share
    directory, lock = base / name, base / f"{name}.lock"
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if not directory.exists():
            partial = factory.mktemp(name)
            make(partial)
            partial.rename(directory)
    return directory
