"""Runs an action in a child process, and kills the process at one of the action's file operations."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from unittest.mock import patch

__all__ = ["interrupt", "kill", "runs_ended_by"]

FILE_EVENTS = {
    *("open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "fcntl.flock"),
    "shutil.copymode",
}


def kill() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """Do what the handler of SIGINT and SIGTERM does."""
    raise KeyboardInterrupt


def runs_ended_by(ending: Callable[[], None], action: Callable[[], object]) -> Iterator[int]:
    """Run an action again and again: end it before its first file operation, before its second, and so on.

    Yields the number of the operation after each run. Stops after the first run that comes to its end. Nothing is
    synced to the disk, which takes long and changes only what a power failure leaves.
    """
    with patch("os.fsync"):
        yield from _runs(ending, action)


def _runs(ending: Callable[[], None], action: Callable[[], object]) -> Iterator[int]:
    for number in count():
        child = os.fork()
        if child == 0:
            _run(ending, action, number)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        yield number
        if not ended:
            return


def _run(ending: Callable[[], None], action: Callable[[], object], number: int) -> None:
    """Run an action in this process, which ends with it."""
    events = count()

    def hook(event: str, _: object) -> None:
        if event in FILE_EVENTS and next(events) == number:
            ending()

    status = 1
    try:
        sys.addaudithook(hook)
        action()
        status = 0
    finally:
        os._exit(status)
