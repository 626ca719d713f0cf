"""Progress of long operations: one protocol, which the library calls and a user interface implements."""

from typing import Protocol

__all__ = ["NO_PROGRESS", "NoProgress", "Progress"]


class Progress(Protocol):
    """Receiver of progress reports. Every long operation calls these three methods and nothing else."""

    def stage(self, name: str) -> None:
        """Report the current activity. The count continues."""

    def start(self, total: int) -> None:
        """Count from zero up to ``total``, in the operation's unit: bytes, steps, batches or runs."""

    def advance(self, count: int) -> None:
        """Report that ``count`` more units are done."""


class NoProgress:
    """Progress that nobody watches."""

    def stage(self, name: str) -> None:
        """Ignore the stage."""

    def start(self, total: int) -> None:
        """Ignore the total."""

    def advance(self, count: int) -> None:
        """Ignore the count."""


NO_PROGRESS: Progress = NoProgress()
