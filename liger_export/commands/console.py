"""What the commands share at the terminal: consoles, streamed text, errors, and what a missing extra says."""

import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from liger_export.commands.tables import megabytes
from liger_export.errors import EnvironmentMismatchError
from liger_export.runtime import Session

__all__ = [
    "err",
    "exporter",
    "interrupt",
    "out",
    "print_error",
    "print_speed",
    "progress_bar",
    "quiet_transformers",
    "raise_swallowed_interrupt",
    "stream_text",
]

out = Console()
err = Console(stderr=True)
_interrupted = threading.Event()


def interrupt(*_: object) -> NoReturn:
    """Handle a signal that ends a command: unwind, so that half-written outputs are removed."""
    _interrupted.set()
    raise KeyboardInterrupt


def raise_swallowed_interrupt() -> None:
    """Raise an interrupt once more that did not end the command.

    Python drops what a signal raises inside a destructor, and some libraries catch everything.
    """
    if _interrupted.is_set():
        _interrupted.clear()
        raise KeyboardInterrupt


@contextmanager
def exporter() -> Iterator[None]:
    """Import a part that needs the ``export`` extra, and say so where it is not installed."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")
    try:
        yield
    except ModuleNotFoundError as error:
        raise EnvironmentMismatchError(
            f"{error.name} is not installed, which this command needs.", "Run: pip install 'liger-export[export]'"
        ) from error


def quiet_transformers() -> None:
    """Keep transformers' progress bars and warnings off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


class ProgressBar:
    """A ``liger_export.progress.Progress`` at the terminal: one line of stage, bar and count."""

    def __init__(self, display: Progress, stage: str) -> None:
        self._display = display
        self._task = display.add_task(escape(stage), total=None)

    def stage(self, name: str) -> None:
        """Show a stage's name; an interrupt that a library swallowed ends the command here."""
        raise_swallowed_interrupt()
        self._display.update(self._task, description=escape(name))

    def start(self, total: int) -> None:
        """Show an empty bar of ``total`` units."""
        self._display.update(self._task, completed=0, total=total)

    def advance(self, count: int) -> None:
        """Fill the bar by ``count`` units."""
        self._display.advance(self._task, count)


@contextmanager
def progress_bar(
    stage: str, *, count: bool = True, in_bytes: bool = False, shown: bool = True
) -> Iterator[ProgressBar]:
    """Show progress on standard error until the context ends.

    Args:
        stage: first stage's name.
        count: show a bar and its count; without, a spinner and the stage.
        in_bytes: the count is bytes.
        shown: False on all but one process of ``accelerate launch``.
    """
    name = TextColumn("{task.description}")
    columns = [SpinnerColumn(), name, TimeElapsedColumn()]
    if count:
        amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
        columns = [name, BarColumn(), amount, TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=err, transient=True, disable=not shown) as display:
        yield ProgressBar(display, stage)


def stream_text(prompt: str, pieces: Iterator[str]) -> tuple[float, float]:
    """Write text as it comes; returns the seconds to the first piece and from there to the last."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    started = time.perf_counter()
    first = None
    for piece in pieces:
        first = first or time.perf_counter()
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    ended = time.perf_counter()
    return (first or ended) - started, ended - (first or ended)


def print_speed(session: Session, prompt: str, seconds: tuple[float, float]) -> None:
    """Say, on standard error, how fast ``stream_text`` wrote and how large the state is."""
    prompt_tokens = len(session.tokenizer.encode(prompt).ids)
    decoded = session.length - prompt_tokens
    rate = f" at {(decoded - 1) / seconds[1]:,.0f} tokens/s" if decoded > 1 and seconds[1] else ""
    err.print(
        f"[dim]{prompt_tokens} prompt tokens in {seconds[0] * 1e3:.0f} ms, {decoded} tokens{rate}, "
        f"state {megabytes(session.state_bytes)}, {session.lowering} graph on {session.device}[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def print_error(cause: str, fix: str) -> None:
    """The two lines that every refusal is, unbroken: a path in them can be copied."""
    err.print(f"[red]error:[/red] {escape(cause)}\n[dim]fix:[/dim]   {escape(fix)}", highlight=False, soft_wrap=True)
