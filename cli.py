"""The ``liger-export`` command line: its commands and its entry point."""

import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer

from liger_export.commands.chat import chat
from liger_export.commands.console import accept_every_character, interrupt, print_error, print_interrupted
from liger_export.commands.engine import build_engine, genai, triton
from liger_export.commands.help import GroupedHelp
from liger_export.commands.measure import bench, evaluate, validate
from liger_export.commands.model import finetune, linearize
from liger_export.commands.package import convert, inspect, run
from liger_export.commands.serve import serve
from liger_export.errors import BoundError, LigerExportError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut option names off in a terminal of 80 columns
    help="Linearize language models, convert them to ONNX and run them on devices.",
    epilog="Exit codes: 0 success, 1 a bound was missed, 2 bad input or environment.",
)
MODEL = (linearize, finetune, convert, validate, evaluate, bench, build_engine)
USE = (inspect, run, chat, serve, triton, genai)
for command in (*MODEL, *USE):
    app.command(cls=GroupedHelp)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"liger-export {version('liger-export')}")
        raise typer.Exit


@app.callback()
def program(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Read the options of the program itself."""


def main(command: Callable[..., Any] = app) -> None:
    """Run the command line. Errors of this project end it with two lines of text and exit code 2."""
    accept_every_character()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, interrupt)
    try:
        command()
    except LigerExportError as error:
        print_error(error.cause, error.fix)
        raise SystemExit(1 if isinstance(error, BoundError) else 2) from None
    except BrokenPipeError:  # the reader of standard output has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        print_error(str(error), "Check the path and its permissions.")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print_interrupted()
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
