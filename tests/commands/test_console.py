import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from liger_export.commands import console
from liger_export.commands.console import (
    ProgressBar,
    interrupt,
    is_narrow,
    print_error,
    progress_bar,
    raise_swallowed_interrupt,
)
from liger_export.commands.tables import parity_table
from liger_export.parity.report import Check, ParityReport


def test_a_swallowed_interrupt_is_raised_again() -> None:
    raise_swallowed_interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        raise_swallowed_interrupt()
    raise_swallowed_interrupt()


def test_a_refusal_is_two_lines_however_narrow_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/long/path/to/a/checkpoint/that/does/not/exist/config.json"
    print_error(f"{path} is missing.", "Pass the directory that was made by linearize.")
    assert capsys.readouterr().err.splitlines() == [
        f"error: {path} is missing.",
        "fix:   Pass the directory that was made by linearize.",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_text_is_too_much_for_the_terminals_encoding(encoding: str) -> None:
    """Generated text, a table and an error hold characters that no 8-bit encoding has, and a lone surrogate."""
    script = (
        "from liger_export.commands.console import accept_every_character, print_error, show, stream_text\n"
        "from liger_export.commands.tables import summary_table\n"
        "accept_every_character()\n"
        "stream_text('a', iter(['\\u2192', '\\ud800']))\n"
        "show(summary_table('\\u2192', [('name', '\\u2192')]))\n"
        "print_error('\\u2192', 'fix')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    arrow = "\u2192" if encoding == "utf-8" else "\\u2192"
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert out.splitlines()[0] == f"a{arrow}\\ud800"
    assert out.count(arrow) == 3
    assert err == f"error: {arrow}\nfix:   fix\n"


def test_a_command_prints_in_an_encoding_without_its_characters(package: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "liger_export"]
    for arguments in (["run", package, "\u2192", "-n", "2"], ["inspect", package]):
        done = subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert arguments[0] != "run" or done.stdout.startswith(b"\\u2192")


class Clock:
    """Seconds that a test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_in_words_has_the_stage_the_steps_and_the_time_left() -> None:
    clock = Clock()
    display = Progress(disable=True, get_time=clock, speed_estimate_period=console.SPEED_SECONDS)
    bar = ProgressBar(display, "loading")
    clock.now += 5
    assert bar.line() == "loading: 0:00:05 so far"
    bar.stage("measuring before training")
    bar.start(2)
    bar.advance(2)
    bar.stage("training")
    bar.start(800)
    bar.advance(700)  # resumed at this step
    for _ in range(4):
        clock.now += 60
        bar.advance(1)
    bar.stage("training, loss 2.345")
    assert bar.line() == "training, loss 2.345: 704 of 800, 0:04:00 so far, 1:36:00 left"
    bar.advance(96)
    bar.stage("[saving]")
    assert bar.line() == "[saving]: 0:04:00 so far"


def test_a_count_of_the_same_length_starts_again_from_nothing() -> None:
    clock = Clock()
    bar = ProgressBar(Progress(disable=True, get_time=clock), "measuring")
    for name, seconds in (("measuring", 1), ("training", 10)):
        bar.stage(name)
        bar.start(10)
        for _ in range(3):
            clock.now += seconds
            bar.advance(1)
    assert bar.line() == "training: 3 of 10, 0:00:30 so far, 0:01:10 left"


def test_bytes_are_counted_in_megabytes() -> None:
    bar = ProgressBar(Progress(disable=True, get_time=Clock()), "writing weights", in_bytes=True)
    bar.start(16_000_000_000)
    bar.advance(2_500_000)
    assert bar.line().startswith("writing weights: 2.5 MB of 16,000.0 MB, ")


def lines_of(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False, visible: bool = True) -> list[str]:
    """Standard error of an operation that says nothing while a line is due, several times."""
    output = StringIO()
    monkeypatch.setattr(console, "err", Console(file=output, force_terminal=terminal, width=20))
    monkeypatch.setattr(console, "LOG_SECONDS", 0.01)
    with progress_bar("[loading]", visible=visible) as bar:
        bar.stage("training, loss [2.5]")
        bar.start(10)
        bar.advance(3)
        time.sleep(0.2)
    ended = output.getvalue()
    time.sleep(0.05)
    assert output.getvalue() == ended
    return ended.splitlines()


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(monkeypatch)
    assert len(lines) >= 2
    assert lines[-1] == "training, loss [2.5]: 3 of 10, 0:00:00 so far"


def test_a_terminal_and_other_processes_get_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("so far" in line for line in lines_of(monkeypatch, terminal=True))
    assert lines_of(monkeypatch, visible=False) == []


def test_a_short_operation_prints_nothing_to_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("loading") as bar:
        bar.start(10)
        bar.advance(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("in_bytes", [True, False])
def test_a_stage_without_a_total_shows_neither_an_amount_nor_the_time_left(
    monkeypatch: pytest.MonkeyPatch, in_bytes: bool
) -> None:
    output = StringIO()
    monkeypatch.setattr(console, "err", Console(file=output, force_terminal=True, width=100))
    with progress_bar("tracing", in_bytes=in_bytes):
        pass
    stage = output.getvalue()
    assert "tracing" in stage
    assert "/?" not in stage
    assert "-:--:--" not in stage
    with progress_bar("writing", in_bytes=in_bytes) as bar:
        bar.start(8)
        bar.advance(4)
    assert "4/8" in output.getvalue()


def test_only_a_narrow_terminal_gets_no_details(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(True, 80), (True, 120), (False, 80)]
    consoles = [Console(force_terminal=terminal, width=width) for terminal, width in cases]
    narrow = []
    for each in consoles:
        monkeypatch.setattr(console, "out", each)
        narrow.append(is_narrow())
    assert narrow == [True, False, False]


def test_a_narrow_terminal_shows_a_check_on_one_line() -> None:
    check = Check("memory: bytes grown a token, slope", 0.0, 0.0, detail="token 64 to 4,096, in a separate process")
    report = ParityReport("package", "liger + adapter", "fused", "cpu", "0", {}, [check])
    for width, details in ((80, False), (120, True)):
        output = StringIO()
        Console(file=output, width=width).print(parity_table(report, details=details))
        [line] = [line for line in output.getvalue().splitlines() if "memory" in line]
        assert "slope" in line
        assert "ok" in line
        assert (check.detail in line) == details
