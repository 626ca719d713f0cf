"""Help of the commands: groups of options, and examples that the commands accept."""

import shlex
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from liger_export.cli import app
from liger_export.commands.help import GroupedHelp
from liger_export.finetune import RECIPES

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def help_of(program: typer.Typer, *arguments: str) -> str:
    return CliRunner().invoke(program, [*arguments, "--help"], env={"COLUMNS": "80"}).stdout


def example_of(command: str) -> str:
    return help_of(app, command).partition("  Example:\n")[2]


def test_options_stand_under_the_title_of_their_group_and_the_example_at_the_end() -> None:
    program = typer.Typer(rich_markup_mode=None, add_completion=False)

    @program.command(cls=GroupedHelp)
    def bake(
        cake: Annotated[str, typer.Argument(help="What to bake.")],
        heat: Annotated[int, typer.Option(help="Temperature.", rich_help_panel="Oven")] = 180,
        name: Annotated[str | None, typer.Option(help="For whom.")] = None,
    ) -> None:
        """Bake.

        Example:
          bake cake \\
              --heat 200
        """

    lines = [line.rstrip() for line in help_of(program).splitlines()]
    titles = [line for line in lines if line.endswith(":")]
    assert titles == ["Arguments:", "Options:", "Oven:", "  Example:"]
    assert lines[lines.index("Oven:") + 1].split()[0] == "--heat"
    assert lines[lines.index("  Example:") + 1 :] == ["    bake cake \\", "        --heat 200"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_one_that_it_accepts(name: str) -> None:
    program, command, *arguments = shlex.split(example_of(name).replace("\\\n", " "))
    assert (program, command) == ("liger-export", name)
    COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_summaries_fit_into_80_columns(name: str) -> None:
    assert max(map(len, help_of(app, name).splitlines())) <= 80
    summary = next(line for line in help_of(app).splitlines() if line.split()[:1] == [name])
    assert not summary.endswith("...")


def test_the_help_of_finetune_has_the_numbers_of_the_recipes() -> None:
    text = " ".join(help_of(app, "finetune").split())
    paper, best = RECIPES["paper"], RECIPES["best"]
    assert f"(paper: {paper.rank}; best: {best.rank})" in text
    assert f"(paper: {paper.learning_rate}; best: {best.learning_rate})" in text
    assert f"(paper: {','.join(paper.target_modules)}; best: all)" in text
