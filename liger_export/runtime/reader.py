"""Reading prompts into a session's text, and continuing it token by token."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from tokenizers import Tokenizer

from liger_export.errors import NotFiniteError
from liger_export.package import Manifest
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.runtime.chat import Turn, rewind
from liger_export.runtime.continuation import Continuation
from liger_export.runtime.executor import Prediction, Tokens
from liger_export.runtime.finite import not_finite
from liger_export.runtime.generation import Generation, GenerationSettings
from liger_export.runtime.guard import Guard
from liger_export.runtime.lookup import Lookup
from liger_export.runtime.pieces import CANCELLED, Piece
from liger_export.runtime.record import NO_TOKENS, TextRecord
from liger_export.runtime.saved_state import SavedState, model_identity

__all__ = ["Reader"]

_Read = Callable[[Generation, Continuation], None]


class Reader:
    """The work of ``Session.generate`` and ``Session.chat``, whose arguments have been checked.

    Attributes:
        random: Source of random choices without a seed. A generation with a seed replaces it.
        turn: The last conversation's prompt that was read.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        text: TextRecord,
        guard: Guard,
        shipped: SavedState | None = None,
    ) -> None:
        """Read into a text, which ``guard`` keeps for one user at a time. ``shipped``: see ``rewind``."""
        self._shipped = shipped
        self._manifest, self._tokenizer, self._text, self._guard = manifest, tokenizer, text, guard
        self._model = model_identity(manifest)
        self.random = np.random.default_rng()
        self.turn: Turn | None = None

    def continue_after(
        self, prompt: Tokens, context: list[int], settings: GenerationSettings, progress: Progress
    ) -> Continuation:
        """Return a continuation of the text, which reads a prompt first. ``context``: see ``Generation``."""
        return self._continue(context, partial(self._read_next, prompt, progress), settings)

    def answer(self, prompt: Tokens, settings: GenerationSettings, progress: Progress) -> Continuation:
        """Return a continuation of a conversation's prompt, which first reads what is new in it."""
        return self._continue(prompt.tolist(), partial(self._read_turn, prompt, progress), settings)

    def save(self) -> SavedState:
        """Return a copy of the text's state and of the random numbers."""
        return replace(self._text.save(self._model), random=json.dumps(self.random.bit_generator.state))

    @contextmanager
    def naming_the_place(self, prediction: Prediction) -> Iterator[None]:
        """Add to a NotFiniteError where in the model the first value was too large."""
        try:
            yield
        except NotFiniteError:
            state = self._text.executor.read_state()
            raise not_finite(self._manifest, state, prediction.last_logits()) from None

    def _continue(self, context: list[int], read_prompt: _Read, settings: GenerationSettings) -> Continuation:
        end_ids = self._manifest.model_config.eos_token_ids
        seed = settings.sampling.seed
        random = self.random if seed is None else np.random.default_rng(seed)
        seen = self._text.seen
        generation = Generation(settings, self._tokenizer, context, end_ids=end_ids, seen=seen, random=random)
        lookup = Lookup(self._text, context, settings.lookup) if settings.lookup else None
        self.random = random
        return Continuation(self._guard, partial(self._advance, generation, [read_prompt], lookup))

    def _advance(
        self, generation: Generation, unread: list[_Read], lookup: Lookup | None, user: Continuation
    ) -> tuple[Piece | None, bool]:
        """Read the prompt, or the pending token after that. Then choose the next token. See ``Continuation``."""
        with self._guard.change(user):
            predicted = None if unread or lookup is None or user.is_cancelled else lookup.predict()
            if predicted is None:
                read = unread.pop() if unread else partial(self._read_next, NO_TOKENS, NO_PROGRESS)
                read(generation, user)
            if user.is_cancelled:
                return Piece("", (), CANCELLED), True
            prediction = predicted or self._text.prediction
            if generation.finished or prediction is None:
                return Piece("", (), generation.finish_reason), True
            with self.naming_the_place(prediction):
                token, piece = generation.advance(prediction)
            if token is not None:
                self._text.pending.append(token)
            if lookup is not None:
                lookup.follow(token, is_last=generation.finished)
        return piece, generation.finished

    def _read_next(self, tokens: Tokens, progress: Progress, generation: Generation, user: Continuation) -> None:
        """Read the pending token and ``tokens``, if there are any, until the user cancels it."""
        if user.is_cancelled:
            return
        tokens, executor = self._text.take_pending(tokens), self._text.executor
        if len(tokens):  # otherwise the next token is chosen from a prediction at another temperature
            executor.request_top_logits(generation.top_logits_temperature)
        progress.start(len(tokens))
        for start in range(0, len(tokens), executor.chunk):
            chunk = tokens[start : start + executor.chunk]
            self._text.read(chunk)
            progress.advance(len(chunk))
            if user.is_cancelled:
                return

    def _read_turn(self, prompt: Tokens, progress: Progress, generation: Generation, user: Continuation) -> None:
        """Read what is new in a conversation's prompt."""
        rest = rewind(self._text, prompt, self.turn, self._shipped)
        self._read_next(rest, progress, generation, user)
        if self._text.executor.position == len(prompt):
            self.turn = Turn(len(prompt), len(rest), self._text.save(self._model))
