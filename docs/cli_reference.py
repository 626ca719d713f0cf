"""The command reference, docs/reference/cli.md, from the commands' own help.

python docs/cli_reference.py
"""

from pathlib import Path

import typer
from typer.testing import CliRunner

from liger_export.cli import app

TITLE = """\
# Commands

The output of every command with `--help`.
"""


def help_of(*command: str) -> str:
    """Return the output of a command's ``--help`` in a terminal of 80 columns."""
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="liger-export", env={"COLUMNS": "80"})
    return result.stdout.strip("\n")


def page() -> str:
    """The text of the page: the program, and a section for each command."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    sections = [TITLE, f"```text\n{help_of()}\n```\n"]
    sections += [f"## {name}\n\n```text\n{help_of(name)}\n```\n" for name in commands]
    return "\n".join(sections)


if __name__ == "__main__":
    (Path(__file__).parent / "reference" / "cli.md").write_text(page(), encoding="utf-8")
