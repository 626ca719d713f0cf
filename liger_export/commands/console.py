"""Terminal output of the commands: results, notes, errors and progress, and how a command is interrupted."""

import io
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import NoReturn

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from liger_export.commands.tables import megabytes
from liger_export.extras import required_extra
from liger_export.runtime import Session
from liger_export.runtime.defaults import GenerationDefaults

__all__ = [
    "ProgressBar",
    "accept_every_character",
    "exporter",
    "interrupt",
    "is_narrow",
    "note_ignored",
    "print_error",
    "print_failure",
    "print_faint",
    "print_interrupted",
    "print_note",
    "print_speed",
    "print_tables",
    "progress_bar",
    "quiet_transformers",
    "raise_swallowed_interrupt",
    "show",
    "stream_text",
]

out = Console()
err = Console(stderr=True)

LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal
WIDE_COLUMNS = 100  # of a terminal that shows the widest tables
SPEED_SECONDS = 600.0  # over which the time left is estimated: a step can take a minute
_interrupted = threading.Event()


def accept_every_character() -> None:
    """Write characters that the terminal's encoding lacks as escapes such as ``\\u2192``, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def interrupt(*_: object) -> NoReturn:
    """Handle a signal that ends a command: unwind the stack, which removes incomplete outputs."""
    _interrupted.set()
    raise KeyboardInterrupt


def raise_swallowed_interrupt() -> None:
    """Raise an interrupt again if the first KeyboardInterrupt was lost.

    Python ignores exceptions raised inside a destructor, and some libraries catch every exception.
    """
    if _interrupted.is_set():
        _interrupted.clear()
        raise KeyboardInterrupt


@contextmanager
def exporter(extra: str = "export") -> Iterator[None]:
    """Report a missing library of an extra as an error with its fix. Imports of the exporter go inside."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")
    with required_extra(extra, "This command"):
        yield


def quiet_transformers() -> None:
    """Keep transformers' progress bars and warnings off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def is_narrow() -> bool:
    """Return True if standard output is a terminal in which the rows of wide tables would be folded."""
    return out.is_terminal and out.width < WIDE_COLUMNS


def show(*results: RenderableType) -> None:
    """Print results to standard output."""
    out.print(*results)


def print_note(text: str) -> None:
    """Print a remark to standard error."""
    err.print(f"note: {escape(text)}")


def note_ignored(defaults: GenerationDefaults) -> None:
    """Print which of a package's generation settings have no effect."""
    if defaults.ignored:
        settings = ", ".join(f"{name} {value}" for name, value in defaults.ignored.items())
        print_note(f"ignored settings of generation_config.json: {settings}")


def print_faint(text: str) -> None:
    """Print information that is not a result to standard error, without wrapping."""
    err.print(f"[dim]{escape(text)}[/dim]", highlight=False, soft_wrap=True)


def print_tables(*tables: RenderableType) -> None:
    """Print tables that are not a result to standard error."""
    err.print(*tables)


def print_failure(summary: str, meaning: str) -> None:
    """Print a failed check to standard error: a summary and its meaning."""
    err.print(f"[red]{escape(summary)}[/red]: {escape(meaning)}")


def print_error(cause: str, fix: str) -> None:
    """Print an error as two lines to standard error, without wrapping, so that paths can be copied."""
    err.print(f"[red]error:[/red] {escape(cause)}\n[dim]fix:[/dim]   {escape(fix)}", highlight=False, soft_wrap=True)


def print_interrupted() -> None:
    """Print that the user ended the command."""
    err.print("interrupted")


class ProgressBar:
    """A ``liger_export.progress.Progress`` on one terminal line: the stage, and a bar once a total is known."""

    def __init__(self, display: Progress, stage: str, *, in_bytes: bool = False) -> None:
        self._display, self._stage = display, stage
        self._task = display.add_task(escape(stage), total=None)
        self._amount = megabytes if in_bytes else "{:,.0f}".format

    def stage(self, name: str) -> None:
        """Show the current activity. Raises KeyboardInterrupt if a library swallowed one."""
        raise_swallowed_interrupt()
        self._stage = name
        self._display.update(self._task, description=escape(name))

    def start(self, total: int) -> None:
        """Show an empty bar of ``total`` units, and measure the time from here."""
        self._display.reset(self._task, total=total)

    def advance(self, count: int) -> None:
        """Fill the bar by ``count`` units."""
        self._display.advance(self._task, count)

    def line(self) -> str:
        """Describe the progress in words: the stage, the units done, the time so far and the time left."""
        [task] = self._display.tasks
        parts = [f"{_clock(task.elapsed or 0)} so far"]
        if task.total is not None and not task.finished:
            parts.insert(0, f"{self._amount(task.completed)} of {self._amount(task.total)}")
            if task.time_remaining is not None:
                parts.append(f"{_clock(task.time_remaining)} left")
        return f"{self._stage}: {', '.join(parts)}"


class _OnceTotalIsKnown(ProgressColumn):
    """A column that is empty in stages without a total, instead of showing ``0/?`` and ``-:--:--``."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        """Render the column."""
        return Text() if task.total is None else self._column.render(task)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


@contextmanager
def progress_bar(
    stage: str, *, counts: bool = True, in_bytes: bool = False, visible: bool = True
) -> Iterator[ProgressBar]:
    """Show progress on standard error until the context ends.

    Where standard error is not a terminal, print a line every ``LOG_SECONDS`` instead.

    Args:
        stage: name of the first stage.
        counts: show a bar; otherwise a spinner.
        in_bytes: the operation counts bytes.
        visible: show anything at all; false on the other processes of ``accelerate launch``.
    """
    description = TextColumn("{task.description}")
    columns: list[ProgressColumn] = [SpinnerColumn(), description, TimeElapsedColumn()]
    if counts:
        amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
        left = _OnceTotalIsKnown(TimeRemainingColumn())
        columns = [description, BarColumn(), _OnceTotalIsKnown(amount), TimeElapsedColumn(), left]
    hidden = not (visible and err.is_terminal)  # a log would get an empty line
    display = Progress(*columns, console=err, transient=True, disable=hidden, speed_estimate_period=SPEED_SECONDS)
    bar = ProgressBar(display, stage, in_bytes=in_bytes)
    with display, _log(bar) if visible and hidden else nullcontext():
        yield bar


@contextmanager
def _log(bar: ProgressBar) -> Iterator[None]:
    """Print progress line by line. A thread does it, because an operation can be silent for minutes."""
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(LOG_SECONDS):
            err.print(bar.line(), markup=False, highlight=False, soft_wrap=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def stream_text(prompt: str, pieces: Iterator[str]) -> tuple[float, float]:
    """Print text as it is generated. Returns the seconds to the first piece, and from the first to the last."""
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


def print_speed(session: Session, prompt_tokens: int, seconds: tuple[float, float]) -> None:
    """Print the speed that ``stream_text`` measured, and the size of the state, to standard error."""
    decoded = session.length - prompt_tokens
    rate = f" at {(decoded - 1) / seconds[1]:,.0f} tokens/s" if decoded > 1 and seconds[1] else ""
    print_faint(
        f"{prompt_tokens} prompt tokens in {seconds[0] * 1e3:.0f} ms, {decoded} tokens{rate}, "
        f"state {megabytes(session.state_bytes)}, {session.lowering} graph on {session.device}"
    )
