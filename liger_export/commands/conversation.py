"""A conversation with a session: its messages, what the last answer cost, and its file."""

import json
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from liger_export.errors import InputError, OutputError
from liger_export.runtime import Sampling, SavedState, Session

__all__ = ["AnswerSettings", "Conversation", "Cost"]

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
GREETING = "Hello"  # any message


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """Settings of every answer. See ``Session.chat``."""

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an answer.

    Attributes:
        prompt_tokens: Tokens of the conversation before it.
        read_tokens: How many of them had to be read; the state held the others.
        tokens: Tokens of the answer.
        first_seconds: Seconds from the request to the first piece.
        rest_seconds: Seconds from the first piece to the last.
    """

    prompt_tokens: int
    read_tokens: int
    tokens: int
    first_seconds: float
    rest_seconds: float


class Conversation:
    """A conversation, whose history is a list of messages.

    Attributes:
        session: Answers.
        messages: The history.
        settings: How to answer.
        cost: What the last answer cost, if there is one.
    """

    def __init__(self, session: Session, settings: AnswerSettings, system: str | None = None) -> None:
        """Start a conversation with a system message, if it is not None.

        Raises:
            InputError: The package has no chat template, or the template refuses the system message.
        """
        self.session = session
        self.settings = settings
        self.messages = self._first = [] if system is None else [_message(SYSTEM, system)]
        self.cost: Cost | None = None
        self._file: Path | None = None
        self.session.chat([*self.messages, _message(USER, GREETING)]).close()  # renders it

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to a message, piece by piece. Close the iterator to stop the answer.

        What was said until then is the answer in the history. Without an answer, the history does not change.

        Raises:
            InputError: See ``Session.chat``.
        """
        asked = [*self.messages, _message(USER, text)]
        settings, said, times = self.settings, [], [time.perf_counter()]
        pieces = self.session.chat(
            asked, max_new_tokens=settings.max_new_tokens, sampling=settings.sampling, stop=settings.stop
        )
        is_whole = False
        try:
            for piece in pieces:
                times.append(time.perf_counter())
                said.append(piece)
                yield piece
            is_whole = True
        except KeyboardInterrupt:
            self.session.reset()  # a call may not have finished; the state of the last prompt is kept
            raise
        finally:
            pieces.close()
            if said or is_whole:
                self.messages = [*asked, _message(ASSISTANT, "".join(said))]
                self._record_cost(times)

    def reset(self) -> None:
        """Forget everything but the system message of the start."""
        self.session.reset()
        self.messages, self.cost, self._file = self._first, None, None

    def save(self, path: Path) -> None:
        """Write the messages and the state to a file.

        Raises:
            OutputError: The file exists and is not this conversation's own.
        """
        if path.exists() and (self._file is None or not path.samefile(self._file)):
            raise OutputError(f"{path} already exists.", "Choose another file, or remove it.")
        replace(self.session.state(), messages=json.dumps(self.messages)).save(path)
        self._file = path

    def load(self, path: Path) -> None:
        """Go on with a conversation that ``save`` wrote.

        Raises:
            InputError: The file is not a saved conversation, or one with another model.
        """
        state = SavedState.read(path)
        messages = _read_messages(path, state)
        self.session.load_state(state)
        self.messages, self.cost, self._file = messages, None, path

    def _record_cost(self, times: list[float]) -> None:
        turn, self.cost = self.session.turn, None
        if turn is not None and self.session.position:  # not after an interrupt
            first = times[min(1, len(times) - 1)]
            tokens = self.session.length - turn.prompt_tokens
            self.cost = Cost(turn.prompt_tokens, turn.read_tokens, tokens, first - times[0], times[-1] - first)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _read_messages(path: Path, state: SavedState) -> list[dict[str, str]]:
    if state.messages is None:
        raise InputError(f"{path} is a state without a conversation.", "Pass a file that /save wrote.")
    try:
        messages = [_message(each["role"], each["content"]) for each in json.loads(state.messages)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has damaged messages ({error!r}).", "Pass a file that /save wrote.") from error
    if not all(isinstance(part, str) for each in messages for part in each.values()):
        raise InputError(f"{path} has messages that are not text.", "Pass a file that /save wrote.")
    return messages
