"""The command ``chat``: a conversation in the terminal, or with messages from a pipe."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from liger_export.commands.console import print_error, print_faint
from liger_export.commands.conversation import AnswerSettings, Conversation
from liger_export.commands.opening import open_session
from liger_export.commands.options import (
    Device,
    Lowering,
    MinP,
    RepetitionPenalty,
    RunnableArgument,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    Verify,
)
from liger_export.commands.tables import megabytes
from liger_export.errors import InputError, LigerExportError, OutputError

__all__ = ["chat"]

HELP = """\
/reset       start a new conversation
/save FILE   save the conversation and its state to a file
/load FILE   continue a saved conversation
/stats       show tokens, speed and memory of the last answer
/help        show this text
/exit        end the program, like Ctrl-D
Ctrl-C       stop an answer; the part that was printed stays in the conversation
A backslash at the end of a line continues the message on the next line.
Put a space before a message that starts with a slash."""


def chat(
    package: RunnableArgument,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("-n", "--max-new-tokens", min=1, help="Maximum tokens of an answer.")
    ] = 1024,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = None,
    verify: Verify = False,
    device: Device = None,
    lowering: Lowering = None,
) -> None:
    """Converse with a package or engine that has a chat template.

    In a terminal, /help lists the commands. From a pipe, every line is a message, and only the answers are printed.

    Example:
      liger-export chat package --system 'Answer briefly.'
    """
    session, sampling = open_session(
        package,
        device=device,
        lowering=lowering,
        threads=threads,
        verify=verify,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    settings = AnswerSettings(max_new_tokens=max_new_tokens, sampling=sampling, stop=tuple(stop or ()))
    conversation = Conversation(session, settings, system)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the session refuses such text with a fix
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 (line editing and history of input, in memory only)
        graph = f"{session.lowering} graph on {session.device}"
        print_faint(f"{package}: {graph}. /help lists the commands, Ctrl-D ends.\n")
    converse(conversation, is_terminal=is_terminal)


def converse(conversation: Conversation, *, is_terminal: bool) -> None:
    """Answer messages until there are no more. In a terminal, the conversation goes on after an error."""
    for text in _messages(is_terminal):
        try:
            if text.startswith("/"):
                if not _run_command(conversation, text):
                    return
            elif text.strip():
                message = text.removeprefix(" ") if text.startswith(" /") else text
                _print_answer(conversation, message, is_terminal)
        except (InputError, OutputError, OSError, KeyboardInterrupt) as error:
            if not is_terminal:
                raise
            _print_problem(error)


def _messages(is_terminal: bool) -> Iterator[str]:
    """Yield messages from standard input until it ends, or until Ctrl-C in a terminal."""

    def read(prompt: str) -> str:
        return input(prompt if is_terminal else "")

    while True:
        try:
            text = read("> ")
            with suppress(EOFError):
                while text.endswith("\\"):
                    text = text[:-1]
                    text += "\n" + read(". ")
        except EOFError:
            break
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            break
        yield text
    if is_terminal:
        sys.stdout.write("\n")


def _run_command(conversation: Conversation, line: str) -> bool:
    """Run a line that starts with a slash. Returns False if it ends the conversation."""
    name, _, argument = line.partition(" ")
    path = Path(argument.strip()).expanduser()
    match name, argument.strip():
        case "/exit", "":
            return False
        case "/help", "":
            print_faint(HELP)
        case "/reset", "":
            conversation.reset()
            print_faint("This is a new conversation.")
        case "/stats", "":
            print_faint(_describe(conversation))
        case (("/save" | "/load"), ""):
            raise InputError(f"{name} needs a file.", f"Write {name} FILE.")
        case "/save", _:
            conversation.save(path)
            print_faint(f"{path}: {len(conversation.messages)} messages, {megabytes(path.stat().st_size)}")
        case "/load", _:
            conversation.load(path)
            print_faint(f"{path}: {len(conversation.messages)} messages, {conversation.session.length:,} tokens")
        case _:
            raise InputError(
                f"There is no command {line!r}.", "/help lists them. If it is a message, put a space before it."
            )
    return True


def _print_answer(conversation: Conversation, message: str, is_terminal: bool) -> None:
    """Print an answer as it is generated. In a terminal, Ctrl-C stops it and keeps what was said."""
    interrupts = _first_interrupt() if is_terminal else nullcontext(threading.Event())
    with interrupts as stopped, closing(conversation.answer(message)) as pieces:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            if stopped.is_set():
                break
    sys.stdout.write("\n\n" if is_terminal else "\n")
    sys.stdout.flush()


@contextmanager
def _first_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first interrupt sets. Another one raises KeyboardInterrupt.

    An exception at any moment could leave the session's state incomplete.
    """
    stopped = threading.Event()

    def record(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, record)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _describe(conversation: Conversation) -> str:
    """Describe what the last answer cost, and the state."""
    session, cost, lines = conversation.session, conversation.cost, []
    if cost is not None:
        kept = cost.prompt_tokens - cost.read_tokens
        rate = f" at {(cost.tokens - 1) / cost.rest_seconds:,.0f} tokens/s" if cost.rest_seconds else ""
        lines = [
            f"answer        {cost.tokens:,} tokens{rate}, the first after {cost.first_seconds * 1e3:,.0f} ms",
            f"prompt        {cost.prompt_tokens:,} tokens: {cost.read_tokens:,} read, {kept:,} kept in the state",
        ]
    lines += [
        f"conversation  {len(conversation.messages)} messages, {session.length:,} tokens",
        f"state         {megabytes(session.state_bytes)} at any length",
    ]
    return "\n".join(lines)


def _print_problem(error: BaseException) -> None:
    """Print an error that the conversation survives. An interrupt ends an answer without a word."""
    if isinstance(error, LigerExportError):
        print_error(error.cause, error.fix)
    elif isinstance(error, OSError):
        print_error(str(error), "Check the path and its permissions.")
    else:
        sys.stdout.write("\n")
