"""Admission to a session: one user at a time, and none after an interrupted change."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from weakref import ref

from liger_export.errors import InputError

__all__ = ["Guard"]

THREAD = "thread"


class Guard:
    """Admits one thread and one generation at a time, and records changes that did not finish.

    An interrupt (Ctrl-C, or an exception from a signal handler) can arrive between a graph call and the record of its
    tokens. State that is updated in place cannot be restored then, so the session stays unusable until its whole state
    is replaced.
    """

    def __init__(self) -> None:
        self._users: dict[str, int] = {}  # the thread that is inside a call
        self._generation: ref[object] | None = None
        self._is_whole = True

    def check_whole(self) -> None:
        """Raise InputError if a change was interrupted. A change that another thread is making does not count."""
        thread = get_ident()
        if not self._is_whole and self._users.get(THREAD, thread) == thread:
            raise InputError(
                "A call on this session was interrupted, and its state is incomplete.",
                "Call reset, or load_state with a saved state.",
            )

    @contextmanager
    def read(self) -> Iterator[None]:
        """Admit a call that only reads the state. It may come between two pieces of a generation.

        Raises:
            InputError: Another thread is inside a call, or a change was interrupted.
        """
        with self._one_thread():
            self.check_whole()
            yield

    @contextmanager
    def change(self, generation: object | None = None) -> Iterator[None]:
        """Admit a call that changes the state, for a generation or for none.

        An InputError inside the block means that the call was refused and the state is still consistent. After any
        other exception the session is unusable.

        Raises:
            InputError: Another thread or generation uses the session, this generation has ended, or a change was
                interrupted.
        """
        with self._one_thread():
            self.check_whole()
            self._check_generation(generation)
            with self._unfinished():
                yield

    @contextmanager
    def replace(self) -> Iterator[None]:
        """Admit a call that replaces the whole state. It ends an unfinished generation and an interrupted change.

        Raises:
            InputError: Another thread is inside a call.
        """
        with self._one_thread(), self._unfinished():
            yield
            self._generation = None

    def begin(self, generation: object) -> None:
        """Reserve the session for a generation until ``end``, or until the generation is garbage-collected.

        Raises:
            InputError: As for ``change``.
        """
        with self._one_thread():
            self.check_whole()
            self._check_generation(None)
            self._generation = ref(generation)

    def end(self, generation: object) -> None:
        """Release the session if this generation holds it."""
        if self._current() is generation:
            self._generation = None

    def _current(self) -> object | None:
        return None if self._generation is None else self._generation()

    def _check_generation(self, generation: object | None) -> None:
        current = self._current()
        if generation is not None and current is not generation:
            raise InputError("The session was reset or loaded a state during this generation.", "Call generate again.")
        if generation is None and current is not None:
            raise InputError(
                "The session is in use by an unfinished generation.",
                "Read it to its end, call its close method, or use fork for a second text.",
            )

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        """Admit one thread.

        An interrupt may leave this thread's own entry behind, so a thread is never refused because of itself.
        """
        thread = get_ident()
        try:
            if self._users.setdefault(THREAD, thread) != thread:  # atomic, unlike a lock and a note of its owner
                raise InputError(
                    "The session is in use by another thread.", "Use one session per thread: fork returns another one."
                )
            yield
        finally:
            if self._users.get(THREAD) == thread:
                self._users.pop(THREAD, None)

    @contextmanager
    def _unfinished(self) -> Iterator[None]:
        was_whole, self._is_whole = self._is_whole, False
        try:
            yield
        except InputError:
            self._is_whole = was_whole
            raise
        self._is_whole = True
