"""One continuation of a text: which tokens it has, what text they are, and when it ends."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from liger_export.errors import InputError
from liger_export.runtime.executor import Prediction
from liger_export.runtime.sampling import Sampler, Sampling
from liger_export.runtime.text import TextStream

__all__ = ["Generation", "GenerationSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Settings of one continuation of a text.

    Attributes:
        max_new_tokens: Largest number of tokens to choose.
        sampling: How to choose them.
        stop: Strings that end the text. They are not part of it. See ``TextStream``.

    Raises:
        InputError: ``max_new_tokens`` is not a number of tokens, or a stop string is empty or not text.
    """

    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int | np.integer) or self.max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {self.max_new_tokens!r}.", "It must be an integer, 0 or more.")
        for string in self.stop:
            if not isinstance(string, str) or not string:
                raise InputError(f"A stop string is {string!r}.", "Pass text of at least one character.")
            if any("\ud800" <= character <= "\udfff" for character in string):
                raise InputError(f"The stop string {string!r} is not valid Unicode text.", "Pass it as UTF-8.")


class Generation:
    """Chooses the tokens of one continuation and decodes them to text.

    It runs no graph. The caller reads the prompt, then alternates ``advance`` with reading the token that it returned,
    so the predictions may come from one sequence or from one of several in a batch.

    Attributes:
        finished: True when the limit, an end-of-text token or a stop string has been reached.
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
        """
        self._sampler = Sampler(settings.sampling, seen, random)
        self._text = TextStream(tokenizer, context, settings.stop)
        self._end_ids = end_ids
        self._remaining = settings.max_new_tokens
        self.finished = not self._remaining
        self.top_logits_temperature = self._sampler.top_logits_temperature

    def advance(self, prediction: Prediction) -> tuple[int | None, list[str]]:
        """Choose the next token.

        Returns:
            The token, or None at the end of the text, and the pieces of text that are now certain.
        """
        token = self._sampler.choose_next(prediction)
        self._remaining -= 1
        if token in self._end_ids:
            self.finished = True
            return None, self._pieces(self._text.finish())
        piece = self._text.push(token)
        self.finished = self._text.stopped or not self._remaining
        return token, self._pieces(piece, self._text.finish()) if self.finished else self._pieces(piece)

    @staticmethod
    def _pieces(*pieces: str) -> list[str]:
        return [piece for piece in pieces if piece]
