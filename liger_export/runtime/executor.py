"""The interface between a session and the graphs that run a model.

An executor owns buffers, bindings and captured CUDA graphs. It knows token ids and tensors, not text or sampling.
``dynamic`` implements it for a package, ``fixed`` for an engine directory.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from liger_export.runtime.buffers import Array
from liger_export.runtime.top_logits import TopLogits

__all__ = ["AheadExecutor", "Executor", "Logits", "Prediction", "StoredPrediction", "Tokens"]

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


class Prediction(Protocol):
    """The model's prediction of one sequence's next token."""

    def last_logits(self) -> Logits:
        """Return the logits, float32 ``[vocab_size]``. On a CPU, this is memory that the next call overwrites."""

    def argmax(self) -> int | None:
        """Return the token with the largest logit.

        Returns None if the graph does not compute it, or if the logits were found not to be finite.
        """

    def top_logits(self, temperature: float) -> TopLogits | None:
        """Return the largest logits, or None if the graph did not compute them at this temperature."""


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """A copy of the logits, ``[vocab_size]``, which later calls do not overwrite. See ``Prediction``."""

    logits: Logits

    def last_logits(self) -> Logits:
        """See ``Prediction``."""
        return self.logits

    def argmax(self) -> int | None:
        """See ``Prediction``."""
        return None

    def top_logits(self, temperature: float) -> TopLogits | None:
        """See ``Prediction``."""
        return None


class Executor(Prediction, Protocol):
    """One sequence's state, and the graphs that read tokens into it.

    As a ``Prediction``, it predicts the token after the last one that ``read`` has read.

    Attributes:
        lowering: The graph that runs.
        device: ``cpu`` or ``cuda``.
    """

    lowering: str
    device: str

    @property
    def position(self) -> int:
        """Number of tokens read. It changes together with the swap of the state buffers, after each graph call."""

    @property
    def chunk(self) -> int:
        """Number of tokens up to which ``read`` is one call of a graph."""

    def read(self, tokens: Tokens) -> None:
        """Read tokens, int64 ``[T]``, in as many graph calls as suit the device."""

    def read_with_all_logits(self, tokens: Tokens) -> Logits:
        """Read tokens, int64 ``[T]``, and return the logits after each, float32 ``[T, vocab_size]``."""

    def request_top_logits(self, temperature: float) -> None:
        """Set the temperature at which later calls compute ``top_logits``; 0 for none.

        Does nothing if the graph does not compute them.
        """

    def read_state(self) -> dict[str, Array]:
        """Return a copy of every state tensor by input name, each ``[1, ...]``."""

    def write_state(self, position: int, tensors: dict[str, Array]) -> None:
        """Replace the state. Raises InputError, and changes nothing, if it does not fit the model."""

    def clear_state(self) -> None:
        """Return to the state before the first token."""

    def fresh(self) -> "Executor":
        """Return a second executor on the same weights, with its own cleared state."""

    def run(self, token_ids: Tokens, position: int, past: dict[str, Array]) -> tuple[Logits, dict[str, Array]]:
        """Run the graph on any batch without touching this executor's state.

        Args:
            token_ids: int64 ``[B, T]``.
            position: Number of tokens that each sequence has read.
            past: State tensors by input name, each ``[B, ...]``.

        Returns:
            Logits, float32 ``[B, T, vocab_size]``, and the next state by input name.
        """

    def buffer_addresses(self) -> list[int]:
        """Return the address of every state buffer, sorted. Only ``ahead`` adds some; they never change."""

    def ahead(self) -> "AheadExecutor | None":
        """Return this executor if it can read ahead; None if its graphs do not read several tokens exactly."""


class AheadExecutor(Executor, Protocol):
    """An executor that can read tokens and stay in the state before them.

    Attributes:
        exact: Number of tokens up to which one call gives the logits and the state of calls of one token, bit by bit.
    """

    exact: int

    def read_ahead(self, tokens: Tokens, keep: int) -> Logits:
        """Read up to ``exact`` tokens and stay in the state before them.

        Args:
            tokens: int64 ``[T]``.
            keep: Number of last tokens to return logits for.

        Returns:
            The logits after each of the last ``keep`` tokens, float32 ``[keep, vocab_size]``.
        """

    def adopt(self) -> None:
        """Go to the state after the tokens of the last ``read_ahead``. Nothing may be read in between."""
