"""One continuation of a text: which tokens it has, what text they are, and when it ends."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from liger_export.errors import InputError
from liger_export.runtime.defaults import GenerationDefaults
from liger_export.runtime.executor import Logits, Prediction
from liger_export.runtime.pieces import LENGTH, STOP, FinishReason, Piece, Token
from liger_export.runtime.sampling import Sampler, Sampling
from liger_export.runtime.text import TextStream
from liger_export.runtime.top_logits import TopLogits

__all__ = ["Generation", "GenerationSettings", "MoreSettings", "settings_of"]


class MoreSettings(TypedDict, total=False):
    """Fields of ``GenerationSettings`` that callers seldom need, as keyword arguments."""

    min_tokens: int
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    top_logprobs: int | None
    lookup: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Settings of one continuation of a text.

    Attributes:
        max_new_tokens: Largest number of tokens to choose.
        min_tokens: Number of tokens before which no end-of-text token and no stop token is chosen. A stop string still
            ends the text.
        sampling: How to choose them.
        stop: Strings that end the text. They are not part of it. See ``TextStream``.
        stop_token_ids: Tokens that end the text, like end-of-text tokens.
        ignore_eos: End-of-text tokens do not end the text.
        top_logprobs: Number of most likely tokens whose log-probabilities are computed, beside the chosen token's; None
            for no log-probabilities.
        lookup: Largest number of tokens to guess from the text and to read in one call with the last one chosen; 0 for
            none. The text is the same. Only a session does this; see ``Lookup``.

    Raises:
        InputError: A number is not one of tokens, ``min_tokens`` exceeds ``max_new_tokens``, or a stop string is empty
            or not text.
    """

    max_new_tokens: int = 256
    min_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    lookup: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "min_tokens", "top_logprobs", "lookup"):
            value = getattr(self, name)
            if not (_is_count(value) or (name == "top_logprobs" and value is None)):
                raise InputError(f"{name} is {value!r}.", "It must be an integer, 0 or more.")
        if self.min_tokens > self.max_new_tokens:
            raise InputError(
                f"min_tokens is {self.min_tokens}, and max_new_tokens only {self.max_new_tokens}.", "Lower min_tokens."
            )
        if not isinstance(self.stop_token_ids, Iterable):
            raise InputError(f"stop_token_ids is {self.stop_token_ids!r}.", "Pass token ids, in a list.")
        for token in self.stop_token_ids:
            if not _is_count(token):
                raise InputError(f"A stop token is {token!r}.", "Pass token ids.")
        for string in self.stop:
            if not isinstance(string, str) or not string:
                raise InputError(f"A stop string is {string!r}.", "Pass text of at least one character.")
            if any("\ud800" <= character <= "\udfff" for character in string):
                raise InputError(f"The stop string {string!r} is not valid Unicode text.", "Pass it as UTF-8.")


def settings_of(
    defaults: GenerationDefaults,
    max_new_tokens: int,
    sampling: Sampling | None,
    stop: str | Sequence[str],
    more: MoreSettings,
) -> GenerationSettings:
    """Return the settings that the arguments of ``Session.generate`` describe. Raises InputError."""
    if not isinstance(stop, Iterable):
        raise InputError(f"stop is {stop!r}.", "Pass a string, or several.")
    if not isinstance(sampling, Sampling | None):
        raise InputError(f"sampling is {sampling!r}.", "Pass a Sampling, or None for the package's defaults.")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    return GenerationSettings(max_new_tokens=max_new_tokens, sampling=sampling or defaults.sampling, stop=stop, **more)


class Generation:
    """Chooses the tokens of one continuation and decodes them to text.

    It runs no graph. The caller reads the prompt, then alternates ``advance`` with reading the token that it returned,
    so the predictions may come from one sequence or from one of several in a batch.

    Attributes:
        finish_reason: Why the text has ended; None if it goes on.
        top_logits_temperature: Temperature to request top logits at.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        tokenizer: Tokenizer,
        context: list[int],
        *,
        end_ids: Collection[int],
        seen: npt.NDArray[np.bool_],
        random: np.random.Generator | None = None,
    ) -> None:
        """Start a continuation.

        Args:
            settings: How to continue.
            tokenizer: Decodes the tokens.
            context: The last tokens before the continuation, whose first tokens may complete a character of theirs.
            end_ids: End-of-text tokens.
            seen: See ``Sampler``.
            random: See ``Sampler``.

        Raises:
            InputError: A token of the settings is outside the vocabulary.
        """
        outside = [token for token in settings.stop_token_ids if token >= len(seen)]
        if outside:
            raise InputError(
                f"The stop token {outside[0]} is outside the vocabulary of {len(seen)} entries.",
                "Use ids of the package's own tokenizer.",
            )
        self._sampler = Sampler(settings.sampling, seen, random)
        self._text = TextStream(tokenizer, context, settings.stop)
        self._end_ids = {*settings.stop_token_ids, *(() if settings.ignore_eos else end_ids)}
        self._top_logprobs = settings.top_logprobs
        self._count, self._least, self._most = 0, settings.min_tokens, settings.max_new_tokens
        self._fresh: list[Token] = []  # tokens that are in no piece yet
        self.finish_reason: FinishReason | None = None if self._most else LENGTH
        self.top_logits_temperature = self._sampler.top_logits_temperature

    @property
    def finished(self) -> bool:
        """True when the limit, an end-of-text token, a stop token or a stop string has been reached."""
        return self.finish_reason is not None

    def advance(self, prediction: Prediction) -> tuple[int | None, Piece | None]:
        """Choose the next token.

        Returns:
            The token, or None at the end of the text, and the piece of text that is now certain, or None if there is no
            new text. The last piece, which may be empty, has the reason of the end.
        """
        token = self._sampler.choose_next(prediction, self._end_ids if self._count < self._least else ())
        self._count += 1
        if token in self._end_ids:
            self.finish_reason = STOP
            return None, self._piece(self._text.finish())
        self._fresh.append(self._described(token, prediction))
        text = self._text.push(token)
        if self._text.stopped or self._count == self._most:
            text += self._text.finish()  # which may complete a stop string
            self.finish_reason = STOP if self._text.stopped else LENGTH
        return token, self._piece(text) if text or self.finished else None

    def _piece(self, text: str) -> Piece:
        tokens, self._fresh = tuple(self._fresh), []
        return Piece(text, tokens, self.finish_reason)

    def _described(self, token: int, prediction: Prediction) -> Token:
        if self._top_logprobs is None:
            return Token(token)
        return _with_logprobs(token, prediction.last_logits(), self._top_logprobs)


def _with_logprobs(token: int, logits: Logits, count: int) -> Token:
    """Return a token with its log-probability and those of the ``count`` most likely tokens."""
    largest = float(logits.max())
    total = largest + float(np.log(np.exp(logits.astype(np.float64) - largest).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if count:
        most_likely = TopLogits.from_logits(logits, count, temperature=1.0)
        pairs = zip(most_likely.ids.tolist(), most_likely.logits.tolist(), strict=True)
        top = tuple((other, logit - total) for other, logit in pairs)
    return Token(token, float(logits[token]) - total, top)


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0
