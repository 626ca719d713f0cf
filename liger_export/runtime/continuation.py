"""The text that ``Session.generate`` returns, piece by piece."""

from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from liger_export.errors import InputError
from liger_export.runtime.guard import Guard

__all__ = ["Continuation"]


class Continuation(Iterator[str]):
    """An iterator over the pieces of a text. No work is done before the first piece is requested.

    Its session is in use until the iterator is exhausted, closed or garbage-collected. It is also a context manager
    that closes itself.
    """

    def __init__(self, guard: Guard, advance: Callable[["Continuation"], tuple[list[str], bool]]) -> None:
        """Reserve the session.

        Args:
            guard: The session's guard.
            advance: Chooses the next token. Returns the new pieces, and True at the end of the text.

        Raises:
            InputError: The session is in use, or a call on it was interrupted.
        """
        self._guard = guard
        self._advance = advance
        self._pieces: deque[str] = deque()
        self._is_open = True
        guard.begin(self)

    def __next__(self) -> str:
        """Return the next piece.

        Raises:
            InputError: The session is in use by another thread, was reset or loaded a state.
        """
        try:
            while self._is_open and not self._pieces:
                self._extend()
            if self._pieces:
                return self._pieces.popleft()
        except InputError:  # refused, perhaps because another thread is reading this generation
            if self._is_open:
                raise
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """End the generation and release the session, which keeps the tokens chosen so far."""
        self._is_open = False
        self._pieces.clear()
        self._guard.end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _extend(self) -> None:
        pieces, is_finished = self._advance(self)
        self._pieces.extend(pieces)
        if is_finished:
            self._is_open = False
            self._guard.end(self)
