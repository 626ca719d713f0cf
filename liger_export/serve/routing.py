"""Which replica has read the longest start of a request's text: what a router remembers. Imports no Ray."""

import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from typing import Any

from liger_export.serve.body import parse_json
from liger_export.serve.errors import ApiError

__all__ = ["Holders", "starts_of"]

PIECE = 256  # characters or token ids
HASH_BYTES = 16
MOST_STARTS, MOST_HOLDERS = 200_000, 16


def starts_of(body: bytes) -> tuple[bytes, ...]:
    """Return a hash of every start of a request's text, the shortest first: after each message, and within long ones.

    Requests with equal hashes have equal models and texts up to there. A body that is not a request has none; the
    replica refuses it.
    """
    try:
        values = parse_json(body)
        if not isinstance(values, dict):
            return ()
        starts = [_hash(b"", values.get("model"))]
        for piece in _pieces(values):
            starts.append(_hash(starts[-1], piece))
        return tuple(starts[1:])
    except (ApiError, RecursionError):
        return ()


class Holders:
    """Replicas by the starts of texts that they have read. Forgets the least recently used. Not thread-safe."""

    def __init__(self, most: int = MOST_STARTS) -> None:
        """Start without any. ``most`` is the largest number of starts."""
        self._most = most
        self._replicas: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def note(self, starts: Sequence[bytes], replica: str) -> None:
        """Remember that a replica reads a text with these starts."""
        for start in starts:
            others = [each for each in self._replicas.pop(start, ()) if each != replica]
            self._replicas[start] = (replica, *others[: MOST_HOLDERS - 1])
        while len(self._replicas) > self._most:
            self._replicas.popitem(last=False)

    def longest(self, starts: Sequence[bytes], among: Collection[str]) -> list[str]:
        """Return those of the replicas that have read the longest of these starts, the last one first."""
        for start in reversed(starts):
            found = [each for each in self._replicas.get(start, ()) if each in among]
            if found:
                return found
        return []


def _pieces(values: dict[str, Any]) -> Iterator[object]:
    """Yield the parts of a text, in such a way that a longer text starts with the parts of a shorter one."""
    messages, prompt = values.get("messages"), values.get("prompt")
    for message in messages if isinstance(messages, list) else ():
        yield from _cut(json.dumps(message))
        yield message
    if isinstance(prompt, str | list):
        yield from _cut(prompt)
        yield prompt


def _cut(text: str | list[Any]) -> Iterator[str | list[Any]]:
    """Yield the whole pieces of a text."""
    for start in range(0, len(text) - PIECE + 1, PIECE):
        yield text[start : start + PIECE]


def _hash(last: bytes, piece: object) -> bytes:
    return blake2b(last + json.dumps(piece).encode(), digest_size=HASH_BYTES).digest()
