import os
import subprocess
import sys
from pathlib import Path

import pytest

from liger_export.commands.console import interrupt, print_error, raise_swallowed_interrupt


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
    """Generated text, a table and an error hold characters that no 8-bit encoding has, and half a character."""
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
