"""The command ``serve``: packages behind OpenAI's interface."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liger_export.commands.console import exporter, note_ignored, print_faint
from liger_export.commands.options import Device, Lowering, Threads, Verify
from liger_export.commands.tables import megabytes
from liger_export.errors import InputError
from liger_export.runtime import load

if TYPE_CHECKING:
    from liger_export.runtime import Session

__all__ = ["serve"]

MEGABYTE = 1_000_000


def serve(
    packages: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]PACKAGE...", help="Package directories. NAME is the model's name in requests."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel="Network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", rich_help_panel="Network")] = 8000,
    slots: Annotated[int, typer.Option(help="Answers that a model generates at once.", rich_help_panel="Limits")] = 8,
    queue: Annotated[
        int,
        typer.Option(help="Answers that wait for a slot; more are refused with status 429.", rich_help_panel="Limits"),
    ] = 64,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with one key per line; clients must send one of them.", rich_help_panel="Network"
        ),
    ] = None,
    max_request_bytes: Annotated[int, typer.Option(help="Maximum bytes of a request.", rich_help_panel="Limits")] = 4
    * MEGABYTE,
    max_prompt_tokens: Annotated[
        int, typer.Option(help="Maximum tokens of a prompt.", rich_help_panel="Limits")
    ] = 131_072,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "-n",
            "--max-new-tokens",
            help="Maximum tokens of an answer; also the default for chats.",
            rich_help_panel="Limits",
        ),
    ] = 4096,
    timeout: Annotated[
        float,
        typer.Option(help="Maximum seconds for an answer, including its time in the queue.", rich_help_panel="Limits"),
    ] = 600.0,
    grace: Annotated[
        float, typer.Option(help="Seconds that answers may continue after SIGTERM.", rich_help_panel="Limits")
    ] = 10.0,
    memory: Annotated[
        int, typer.Option(metavar="MB", help="Memory for states of earlier texts.", rich_help_panel="States")
    ] = 1000,
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory to keep states in when the server ends.", rich_help_panel="States"),
    ] = None,
    state_size: Annotated[
        int, typer.Option(metavar="MB", help="Maximum size of that directory.", rich_help_panel="States")
    ] = 10_000,
    threads: Threads = None,
    verify: Verify = False,
    device: Device = None,
    lowering: Lowering = None,
) -> None:
    """Serve packages to OpenAI's clients and to browsers.

    Browsers get a chat page. If a text begins like an earlier one, only the rest is read.

    Example:
      liger-export serve package --state-dir states --port 8000
    """
    with exporter("serve"):
        from liger_export.serve import ServeSettings
        from liger_export.serve import serve as run_server
    settings = ServeSettings(
        host=host,
        port=port,
        slots=slots,
        queue=queue,
        api_key_file=api_key_file,
        max_request_bytes=max_request_bytes,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        request_seconds=timeout,
        shutdown_seconds=grace,
        memory_bytes=memory * MEGABYTE,
        state_dir=state_dir,
        state_bytes=state_size * MEGABYTE,
    )
    settings.read_api_keys()  # before any long work
    sessions: dict[str, Session] = {}
    for name, directory in map(_name_and_directory, packages):
        if name in sessions:
            raise InputError(f"Two packages have the name {name!r}.", "Write NAME=PACKAGE, with another name.")
        session = load(directory, device=device, lowering=lowering, threads=threads, verify=verify)
        note_ignored(session.defaults)
        sessions[name] = session
        size = megabytes(session.state_bytes)
        print_faint(f"{name}: {session.lowering} graph on {session.device}, {size} of state for each conversation")

    def announce(address: str) -> None:
        print_faint(f"listening on {address}, for browsers and OpenAI's clients. Ctrl-C ends.")

    run_server(sessions, settings, announce)


def _name_and_directory(text: str) -> tuple[str, Path]:
    """Return the name and the path of ``NAME=PACKAGE``; without a name, that of the directory."""
    name, separator, path = text.partition("=")
    directory = Path(path if separator else text)
    name = name if separator else directory.resolve().name
    if not name or (not path and separator):
        raise InputError(f"{text!r} is not a package with a name.", "Write NAME=PACKAGE.")
    return name, directory
