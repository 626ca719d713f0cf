"""The text that ``Session.generate`` returns, piece by piece."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Self

from liger_export.errors import InputError
from liger_export.runtime.closing import Closing
from liger_export.runtime.guard import Guard
from liger_export.runtime.pieces import Piece

__all__ = ["Continuation"]


class Continuation(Iterator[Piece], Closing):
    """An iterator over the pieces of a text. No work is done before the first piece is requested.

    The last piece, which may be empty, has a ``finish_reason``.

    ``cancel`` may be called from another thread. ``async for`` runs the model in a separate thread.

    The session is in use until the iterator is exhausted, closed or garbage-collected. At the end of a ``with`` block
    the iterator closes itself.

    Attributes:
        is_cancelled: True after ``cancel``.
    """

    def __init__(self, guard: Guard, advance: Callable[["Continuation"], tuple[Piece | None, bool]]) -> None:
        """Reserve the session.

        Args:
            guard: The session's guard.
            advance: Chooses the next token. Returns the new piece, if any, and True at the end of the text.

        Raises:
            InputError: The session is in use, or a call on it was interrupted.
        """
        self._guard = guard
        self._advance = advance
        self._piece: Piece | None = None
        self._is_open = True
        self.is_cancelled = False
        guard.begin(self)

    def __next__(self) -> Piece:
        """Return the next piece.

        Raises:
            InputError: The session is in use by another thread, was reset or loaded a state.
        """
        try:
            while self._is_open and self._piece is None:
                self._extend()
            if self._piece is not None:
                piece, self._piece = self._piece, None
                return piece
        except InputError:  # refused, perhaps because another thread is reading this generation
            if self._is_open:
                raise
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        """Return the next piece without blocking the event loop. Raises as ``__next__``."""
        try:
            piece = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:  # the thread goes on for up to one step
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def cancel(self) -> None:
        """End the text within one step of the model, or one chunk of the prompt. The last piece says ``cancelled``."""
        self.is_cancelled = True

    def close(self) -> None:
        """End the generation and release the session, which keeps the tokens chosen so far."""
        self._is_open = False
        self._piece = None
        self._guard.end(self)

    def _extend(self) -> None:
        self._piece, is_finished = self._advance(self)
        if is_finished:
            self._is_open = False
            self._guard.end(self)
