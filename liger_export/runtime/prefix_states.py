"""The interface between a scheduler and a store of states of texts that were read before."""

from typing import Protocol

from liger_export.runtime.executor import Tokens
from liger_export.runtime.saved_state import SavedState

__all__ = ["PrefixStates"]


class PrefixStates(Protocol):
    """States of texts by their tokens.

    A scheduler calls all methods in its own thread, while no stream advances. They should be fast, and an error in
    them ends the request that they were called for.
    """

    def longest(self, tokens: Tokens) -> tuple[int, SavedState] | None:
        """Return the state of the longest known text that ``tokens``, int64 [T], start with, and its length.

        A state of all the tokens must have ``logits``; one of fewer tokens need not. None if no text is known.
        """

    def add(self, tokens: Tokens, state: SavedState) -> None:
        """Receive the state after ``tokens``: at the end of a prompt or an answer, or where texts part.

        The state is a copy that the receiver may keep. It has all fields but ``messages``, and no pending token.
        """

    def shared(self, tokens: Tokens) -> int:
        """Return how many tokens at the start are also the start of another known text.

        A state cannot be cut, so texts that part there cannot use states after that place. The scheduler adds the state
        at the place, for the next text that parts there.
        """
