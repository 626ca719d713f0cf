"""Requests to continue a prompt, and the streams of text that answer them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition
from types import TracebackType
from typing import Self

from liger_export.errors import InputError
from liger_export.runtime.generation import GenerationSettings
from liger_export.runtime.pieces import FinishReason, Piece

__all__ = ["Request", "Stream"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to be continued.

    Attributes:
        prompt: Token ids of the whole text so far, including tokens such as BOS.
        settings: How to continue it.
    """

    prompt: tuple[int, ...]
    settings: GenerationSettings = field(default_factory=GenerationSettings)


class Stream(Iterator[Piece], AsyncIterator[Piece]):
    """The continuation of one request, in pieces, for one reader in any thread or event loop.

    Iterating waits for the next piece and never runs the model. The last piece, which may be empty, has a
    ``finish_reason``. A stream that is not read goes on in the background; its pieces wait in memory. It is also a
    context manager that cancels itself.

    Attributes:
        prompt_tokens: Number of tokens in the prompt.
        cached_tokens: Number of them that were not read, because a state after them was known. None until the prompt's
            turn comes.
        read_tokens: Number of tokens of the prompt that are in the state, cached ones included. It grows while the
            prompt is read.
        generated_tokens: Number of tokens chosen so far, without an end-of-text token.
        finish_reason: As in the last piece; None until that has been made.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens: int | None = None
        self.read_tokens = 0
        self.generated_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._changed = Condition()
        self._pieces: deque[Piece] = deque()
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._is_ended = False  # nothing more will be put
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    @property
    def is_cancelled(self) -> bool:
        """True after ``cancel``."""
        return self._is_cancelled

    def cancel(self) -> None:
        """End the text within one step of the model, from any thread. The last piece then says ``cancelled``.

        Does nothing if the text has ended.
        """
        self._is_cancelled = True

    def put(self, piece: Piece) -> None:
        """Add a piece. Only the scheduler calls this."""
        with self._changed:
            self._pieces.append(piece)
            self.generated_tokens += len(piece.tokens)
            self.finish_reason = piece.finish_reason
            self._is_ended = piece.finish_reason is not None
            self._wake()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, which iterating raises after the pieces. Only the scheduler calls this."""
        with self._changed:
            self._error, self._is_ended = error, True
            self._wake()

    def __next__(self) -> Piece:
        """Wait for the next piece and return it.

        Raises:
            NotFiniteError: The logits are not finite.
        """
        with self._changed:
            while not (self._pieces or self._is_ended):
                self._changed.wait()
            piece = self._take()
        if piece is None:
            raise StopIteration
        return piece

    async def __anext__(self) -> Piece:
        """Wait for the next piece without blocking the event loop, and return it. Raises as ``__next__``."""
        while True:
            with self._changed:
                if self._pieces or self._is_ended:
                    piece = self._take()
                    break
                if self._waiter is not None:
                    raise InputError("The stream already has a reader.", "Read each stream in one task.")
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = loop, future
            try:
                await future
            finally:
                self._waiter = None
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def _take(self) -> Piece | None:
        """Return the next piece, or None at the end."""
        if self._pieces:
            return self._pieces.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    def _wake(self) -> None:
        """Wake the reader, which holds or will hold the lock."""
        self._changed.notify_all()
        if self._waiter is not None:
            loop, future = self._waiter
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(_finish, future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
