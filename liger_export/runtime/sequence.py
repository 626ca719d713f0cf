"""One answer of a scheduler: its prompt, its slot and its stream."""

from dataclasses import replace

import numpy as np

from liger_export.errors import InputError, NotFiniteError
from liger_export.runtime.executor import Prediction, Tokens
from liger_export.runtime.finite import not_finite
from liger_export.runtime.generation import Generation
from liger_export.runtime.pieces import CANCELLED, Piece
from liger_export.runtime.prompt import checked_tokens
from liger_export.runtime.record import NO_TEXT, RECENT_TOKENS, digest_after
from liger_export.runtime.saved_state import SavedState
from liger_export.runtime.session import Session
from liger_export.runtime.slots import Row, Slots
from liger_export.runtime.streams import Request, Stream

__all__ = ["Sequence", "with_seed_of"]


class Sequence:
    """One answer to a request. Only the scheduler's thread uses it once it is queued.

    Attributes:
        stream: Takes the answer.
        prompt: Token ids, int64 [T].
        followers: Other answers to the same prompt, which begin from the state after it.
        start: State to begin from, at the end of the prompt; None if that is not known.
        parting: Place in the prompt whose state is to be stored, because other texts start alike up to it; 0 for none.
        top_logits_temperature: See ``Generation``.
    """

    def __init__(self, session: Session, request: Request) -> None:
        """Check a request. Raises InputError; see ``Scheduler.submit``."""
        manifest = session.manifest
        self._manifest = manifest
        self.prompt = checked_tokens(request.prompt, manifest.model_config.vocab_size)
        if not len(self.prompt):
            raise InputError("There are no tokens to read.", "Pass at least one token.")
        self.stream = Stream(len(self.prompt))
        self._row: Row | None = None
        self._pending: int | None = None  # the token that was chosen last and has not been read
        self.followers: list[Sequence] = []
        self.start: SavedState | None = None
        self.parting = 0
        self._seen = np.zeros(manifest.model_config.vocab_size, dtype=np.bool_)
        self._seen[self.prompt] = True
        self._answer: list[int] = []  # tokens that have been read
        self._digest: str | None = NO_TEXT
        context, end_ids = self.prompt[-RECENT_TOKENS:].tolist(), manifest.model_config.eos_token_ids
        self._generation = Generation(request.settings, session.tokenizer, context, end_ids=end_ids, seen=self._seen)
        self.top_logits_temperature = self._generation.top_logits_temperature

    @property
    def row(self) -> Row:
        """The slot that holds the state."""
        assert self._row is not None
        return self._row

    @property
    def unread(self) -> Tokens:
        """The tokens of the prompt that are not in the state yet."""
        return self.prompt[self.stream.read_tokens :]

    @property
    def tokens(self) -> Tokens:
        """The tokens that have been read."""
        return np.concatenate([self.prompt[: self.stream.read_tokens], np.array(self._answer, dtype=np.int64)])

    def begin(self, row: Row, state: SavedState | None) -> None:
        """Take a slot. ``state`` is what its row holds: that of a beginning of the prompt."""
        self._row = row
        position = state.position if state is not None else 0
        self.stream.cached_tokens = self.stream.read_tokens = position
        self._digest = state.digest if state is not None and position else NO_TEXT

    def release(self) -> Row | None:
        """Return the slot, which is then no longer this sequence's; None if it has none."""
        row, self._row = self._row, None
        return row

    def record(self, tokens: Tokens) -> None:
        """Record tokens of the prompt that have been read."""
        self.stream.read_tokens += len(tokens)
        self._digest = digest_after(self._digest, tokens)

    @property
    def is_finished(self) -> bool:
        """True at the end of the text."""
        return self._generation.finished

    def advance(self, prediction: Prediction, slots: Slots) -> Piece | None:
        """Choose the next token. Returns the new piece of text, if any; at the end of the text there is one.

        Raises:
            NotFiniteError: The logits are not finite.
        """
        if self.is_finished:  # no token was requested
            return Piece("", (), self._generation.finish_reason)
        try:
            token, piece = self._generation.advance(prediction)
        except NotFiniteError:
            raise not_finite(self._manifest, slots.read_state(self.row), prediction.last_logits()) from None
        if token is not None:
            self._pending = token
            self._seen[token] = True
        return piece

    def take_pending(self) -> int:
        """Return the token that was chosen last, which is about to be read."""
        assert self._pending is not None
        token, self._pending = self._pending, None
        self._answer.append(token)
        self._digest = digest_after(self._digest, np.array([token]))
        return token

    def cancel(self) -> None:
        """End the stream because its reader has cancelled it."""
        self.stream.put(Piece("", (), CANCELLED))

    def saved(self, slots: Slots, prediction: Prediction, model: str) -> SavedState:
        """Return a copy of the state after the tokens read. ``model``: see ``SavedState``."""
        tokens = self.tokens
        return SavedState(
            self.row.position,
            slots.read_state(self.row),
            model=model,
            recent=tuple(tokens[-RECENT_TOKENS:].tolist()),
            seen=np.unique(tokens),
            logits=prediction.last_logits().copy(),
            digest=self._digest,
        )


def with_seed_of(request: Request, index: int) -> Request:
    """Return the request for answer ``index`` to a prompt: its seed, if there is one, is that much larger."""
    sampling = request.settings.sampling
    if not index or sampling.seed is None:
        return request
    sampling = replace(sampling, seed=sampling.seed + index)
    return replace(request, settings=replace(request.settings, sampling=sampling))
