"""Pieces of a generated text, with the tokens that they are made of."""

from dataclasses import dataclass
from typing import Literal, Self

__all__ = ["CANCELLED", "LENGTH", "STOP", "FinishReason", "Piece", "Token"]

FinishReason = Literal["stop", "length", "cancelled"]
STOP: FinishReason = "stop"
LENGTH: FinishReason = "length"
CANCELLED: FinishReason = "cancelled"


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was chosen.

    Log-probabilities are the model's: of all logits, before penalties, biases, temperature and filters.

    Attributes:
        id: The token.
        logprob: Its log-probability; None if log-probabilities were not requested.
        top: The most likely tokens with their log-probabilities, the most likely first. It has as many entries as were
            requested, so it may be empty or lack the chosen token.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Piece(str):
    """A piece of text: a ``str`` that also holds its tokens.

    Text is held back while the next token may change it, so a piece can have several tokens.

    Attributes:
        tokens: The tokens chosen since the piece before. An end-of-text token is not among them.
        finish_reason: Why the text ends with this piece: ``stop`` for an end-of-text token, a stop token or a stop
            string, ``length`` for the largest number of tokens, ``cancelled``. None if the text goes on.
    """

    __slots__ = ("finish_reason", "tokens")
    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None

    def __new__(cls, text: str, tokens: tuple[Token, ...] = (), finish_reason: FinishReason | None = None) -> Self:
        """Make a piece; see above for the arguments."""
        piece = super().__new__(cls, text)
        piece.tokens, piece.finish_reason = tokens, finish_reason
        return piece

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens."""
        return tuple(token.id for token in self.tokens)
