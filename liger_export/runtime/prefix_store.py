"""States after texts, so that a text that starts like an earlier one is not read again from its start."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from threading import RLock

import numpy as np

from liger_export.errors import InputError, OutputError
from liger_export.runtime.closing import Closing
from liger_export.runtime.executor import Tokens
from liger_export.runtime.prefix_files import PrefixFiles
from liger_export.runtime.prefix_tree import Node, PrefixTree, Text
from liger_export.runtime.saved_state import SavedState

__all__ = ["PrefixStore"]

MOST_UNWRITTEN = 16  # states that wait to be written to the disk


@dataclass(slots=True)
class _Entry:
    """A stored state.

    Attributes:
        used: Number of its last use.
        has_logits: True if the state has the logits of the next token.
        is_kept: True if it is removed only after those that are not.
        nbytes: Bytes in memory, if the state is there.
        state: The state, if it is in memory.
        file: Its file, if it has one.
        written: The writing of the file.
    """

    used: int = 0
    has_logits: bool = False
    is_kept: bool = False
    nbytes: int = 0
    state: SavedState | None = None
    file: str | None = None
    written: Future[None] | None = None


class PrefixStore(Closing):
    """States of one package by the text that they are after, bounded in bytes, in memory and in files.

    A state is exact after its own text only. For another text, the longest stored text that it starts with is the best
    start. States at ends of turns and where texts part are kept longest; among them, and among the others, the one
    unused for longest is removed first.

    Any thread may use it. Files are written in the background. At the end of a ``with`` block it closes itself.
    """

    def __init__(self, package: str, *, memory_bytes: int, files: PrefixFiles | None = None) -> None:
        """Open a store, with what its files hold.

        Args:
            package: ``package_identity`` of the package that computes the states.
            memory_bytes: Most bytes of states and texts in memory.
            files: Where states outlive the process. Stores of several packages may share it.

        Raises:
            InputError: ``memory_bytes`` is not a number of bytes.
        """
        if not isinstance(memory_bytes, int) or memory_bytes < 0:
            raise InputError(f"memory_bytes is {memory_bytes!r}.", "It must be an integer, 0 or more.")
        self._package, self._memory_bytes, self._files = package, memory_bytes, files
        self._tree: PrefixTree[_Entry] = PrefixTree()
        self._by_file: dict[str, Node[_Entry]] = {}
        self._uses = count()
        self._lock = RLock()
        self._nbytes = 0
        self._seen_change: int | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="prefix-store")
        self._writing: list[Future[None]] = []
        self._refresh()

    @property
    def nbytes(self) -> int:
        """Bytes of the states and texts in memory."""
        return self._nbytes

    def __len__(self) -> int:
        """Return the number of states, in memory and in files."""
        with self._lock:
            return sum(1 for _ in self._tree)

    def texts(self) -> set[tuple[int, ...]]:
        """Return the texts whose states are stored."""
        with self._lock:
            return {_text_of(node) for node in self._tree}

    def add(self, tokens: Sequence[int] | Tokens, state: SavedState, *, ends_turn: bool = True) -> None:
        """Store the state after a text. Its arrays must not change from now on.

        Args:
            tokens: The text, at least one token.
            state: The state after it, without a pending token.
            ends_turn: True for the end of a prompt or of an answer, where a conversation is likely to go on.

        Raises:
            InputError: The text is empty, or the state is not the one after it.
        """
        text = np.asarray(tokens, dtype=np.int32)
        if not len(text) or state.position != len(text) or state.pending:
            raise InputError(
                f"A state after {state.position} tokens is not the state after a text of {len(text)}.",
                "Pass all tokens that the state has read, and no token that it has not.",
            )
        with self._lock:
            self._refresh()
            node = self._tree.add(text)
            if node.entry is None:
                node.entry = _Entry()
            entry, has_logits = node.entry, state.logits is not None
            is_better = has_logits and not entry.has_logits
            if entry.state is None or is_better:
                self._hold(entry, text, state)
            entry.used = next(self._uses)
            if ends_turn or len(node.children) > 1:
                self._keep(node)
            if node.parent is not None and len(node.parent.children) > 1:
                self._keep(node.parent)
            if entry.file is None or is_better:
                self._write(node, text)
            self._trim()
        self._wait_for_writer(MOST_UNWRITTEN)

    def longest(self, tokens: Sequence[int] | Tokens) -> tuple[int, SavedState] | None:
        """Return the state after the longest stored text that ``tokens`` start with, and its length.

        A state after all tokens is returned only if it has the logits of the next one. None if there is no state. Its
        arrays are shared and must not be changed.
        """
        text = np.asarray(tokens, dtype=np.int32)
        with self._lock:
            self._refresh()
            for node in self._tree.path(text)[0]:
                state = self._state(node, text[: node.length])
                if state is not None and (node.length < len(text) or state.logits is not None):
                    assert node.entry is not None
                    node.entry.used = next(self._uses)
                    self._trim(but=node)
                    return node.length, state
            return None

    def shared(self, tokens: Sequence[int] | Tokens) -> int:
        """Return how many tokens at the start are also the start of a stored text.

        A state cannot be cut, so a text that parts there from the stored ones cannot use the states after that place. A
        state at the place is worth storing.
        """
        with self._lock:
            return self._tree.path(np.asarray(tokens, dtype=np.int32))[1]

    def flush(self) -> None:
        """Wait until everything is in files."""
        self._wait_for_writer(0)

    def close(self) -> None:
        """Wait until everything is in files, and end the background thread."""
        self._writer.shutdown()

    def _state(self, node: Node[_Entry], text: Text) -> SavedState | None:
        """Return a node's state, from its file if it is not in memory. Remove the entry if that is gone or damaged."""
        entry = node.entry
        assert entry is not None
        if entry.state is not None:
            if self._files is not None and entry.file is not None:
                self._files.touch(entry.file)
            return entry.state
        assert self._files is not None
        assert entry.file is not None
        state = self._files.read(entry.file, text)
        if state is None:
            self._drop(node)
            return None
        self._hold(entry, text, state)
        return state

    def _hold(self, entry: _Entry, text: Text, state: SavedState) -> None:
        """Take a state into memory."""
        self._release(entry)
        entry.state, entry.nbytes, entry.has_logits = state, _bytes_of(text, state), state.logits is not None
        self._nbytes += entry.nbytes

    def _release(self, entry: _Entry) -> None:
        """Drop a state from memory, if it is there."""
        if entry.state is not None:
            entry.state = None
            self._nbytes -= entry.nbytes

    def _keep(self, node: Node[_Entry]) -> None:
        """Mark the entry of a node, if it has one, as one to keep."""
        entry = node.entry
        if entry is None or entry.is_kept:
            return
        entry.is_kept = True
        if entry.file is not None and self._files is not None:
            self._finish(entry)
            del self._by_file[entry.file]
            entry.file = self._files.keep(entry.file)
            self._by_file[entry.file] = node

    def _write(self, node: Node[_Entry], text: Text) -> None:
        """Write the state of a node in the background."""
        entry = node.entry
        assert entry is not None
        assert entry.state is not None
        if self._files is None:
            return
        entry.file = self._files.name(self._package, text, is_kept=entry.is_kept)
        self._by_file[entry.file] = node
        entry.written = self._writer.submit(self._files.write, entry.file, text.copy(), entry.state)
        self._writing = [future for future in self._writing if not future.done()] + [entry.written]

    def _finish(self, entry: _Entry) -> None:
        """Wait until the file of an entry is written, if it is being written."""
        if entry.written is not None:
            with suppress(OutputError, OSError):  # a full disk: the file is not there, as if it had been removed
                entry.written.result()
            entry.written = None

    def _wait_for_writer(self, most: int) -> None:
        with self._lock:
            waiting = self._writing[: len(self._writing) - most]
        for future in waiting:
            with suppress(OutputError, OSError):
                future.result()

    def _trim(self, but: Node[_Entry] | None = None) -> None:
        """Remove the least useful states from memory, until the others fit."""
        if self._nbytes <= self._memory_bytes:
            return
        held = [node for node in self._tree if node.entry is not None and node.entry.state is not None]
        held.sort(key=lambda node: (node is but, *_usefulness(node)))
        for node in held:
            if self._nbytes <= self._memory_bytes:
                return
            entry = node.entry
            assert entry is not None
            if entry.file is None:
                self._drop(node)
                continue
            self._finish(entry)
            self._release(entry)
            assert self._files is not None
            if not self._files.has(entry.file):
                self._drop(node)

    def _drop(self, node: Node[_Entry]) -> None:
        """Forget a node's state."""
        entry = node.entry
        assert entry is not None
        self._release(entry)
        if entry.file is not None:
            self._by_file.pop(entry.file, None)
        self._tree.remove(node)

    def _refresh(self) -> None:
        """Take up files that another process wrote, and forget those that were removed."""
        if self._files is None or self._files.changed == self._seen_change:
            return
        self._seen_change = self._files.changed
        names = self._files.names(self._package)
        for name in (name for name in names if name not in self._by_file):
            try:
                stored = self._files.describe(name)
            except (OSError, ValueError):
                self._files.remove(name)
                continue
            node = self._tree.add(stored.text)
            if node.entry is None:
                node.entry = _Entry(next(self._uses), stored.has_logits, stored.is_kept)
            if node.entry.file is None:
                node.entry.file = name
                self._by_file[name] = node
        for name in self._by_file.keys() - set(names):
            node = self._by_file[name]
            entry = node.entry
            assert entry is not None
            if not (entry.written is not None and not entry.written.done()) and not self._files.has(name):
                del self._by_file[name]
                entry.file = entry.written = None
                if entry.state is None:
                    self._drop(node)


def _usefulness(node: Node[_Entry]) -> tuple[bool, int]:
    assert node.entry is not None
    return node.entry.is_kept, node.entry.used


def _bytes_of(text: Text, state: SavedState) -> int:
    """Return the bytes of a state and its text in memory."""
    arrays = [*state.tensors.values(), text]
    return sum(array.nbytes for array in (*arrays, state.seen, state.logits) if array is not None)


def _text_of(node: Node[_Entry]) -> tuple[int, ...]:
    labels = []
    last: Node[_Entry] | None = node
    while last is not None:
        labels.append(last.label)
        last = last.parent
    return tuple(int(token) for token in np.concatenate(labels[::-1]))
