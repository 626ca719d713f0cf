"""The command reference, docs/reference/cli.md, from the commands' own help.

python docs/cli_reference.py > docs/reference/cli.md
"""

import sys
from io import StringIO
from typing import TextIO

import typer
from typer.testing import CliRunner

from liger_export.cli import app

TITLE = """\
# Commands

Generated from the commands: what each prints with `--help`.
"""


def help_of(*command: str) -> str:
    """Return the output of a command's ``--help`` in a terminal of 80 columns."""
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="liger-export", env={"COLUMNS": "80"})
    return result.stdout.strip("\n")


def write_page(file: TextIO) -> None:
    """Write the page: the program, and a section for each command."""
    file.write(f"{TITLE}\n```text\n{help_of()}\n```\n")
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        file.write(f"\n## {name}\n\n```text\n{help_of(name)}\n```\n")


def page() -> str:
    """The text of the page."""
    file = StringIO()
    write_page(file)
    return file.getvalue()


if __name__ == "__main__":
    write_page(sys.stdout)
