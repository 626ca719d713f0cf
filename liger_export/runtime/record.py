"""The text that a session reads: the model's state in an executor, and a record in memory that does not grow."""

from hashlib import sha256

import numpy as np

from liger_export.errors import InputError
from liger_export.package import FLOAT32_REACH
from liger_export.runtime.executor import Executor, Prediction, StoredPrediction, Tokens
from liger_export.runtime.saved_state import SavedState

__all__ = ["NO_TEXT", "NO_TOKENS", "RECENT_TOKENS", "TextRecord", "digest_after", "require_reach", "starts_with"]

RECENT_TOKENS = 16  # more than the bytes of a character
NO_TOKENS: Tokens = np.empty(0, dtype=np.int64)
NO_TEXT = ""  # the digest of no tokens


class TextRecord:
    """One text, as an executor has read it.

    Attributes:
        executor: Holds the model's state.
        seen: bool [vocab_size], True for tokens in the text, for the repetition penalty.
        pending: Tokens that ``generate`` chose and the model has not read yet: at most one, or with ``Lookup`` several.
        recent: The last tokens read.
        prediction: Of the token after the last one read; None if there is none.
        digest: ``digest_after`` all tokens read; None if a state was loaded that does not have it.
    """

    def __init__(self, executor: Executor, vocab_size: int, max_length: int | None = None) -> None:
        """Begin a text.

        Args:
            executor: See above.
            vocab_size: Size of the model's vocabulary.
            max_length: Tokens up to which the graph's rotary angles are accurate; None if they are exact.
        """
        self.executor = executor
        self._max_length = max_length
        self.seen = np.zeros(vocab_size, dtype=np.bool_)
        self.pending: list[int] = []
        self.recent: list[int] = []
        self.prediction: Prediction | None = None
        self.digest: str | None = NO_TEXT

    def read(self, tokens: Tokens) -> None:
        """Read tokens, int64 ``[T]``."""
        self.executor.read(tokens)
        self.record(tokens, self.executor)

    def record(self, tokens: Tokens, prediction: Prediction) -> None:
        """Record tokens that the executor has read, and the prediction of the next one."""
        self.seen[tokens] = True
        self.recent = [*self.recent, *tokens[-RECENT_TOKENS:].tolist()][-RECENT_TOKENS:]
        self.prediction = prediction
        self.digest = digest_after(self.digest, tokens)

    def take_pending(self, tokens: Tokens) -> Tokens:
        """Return the last pending token, which is then no longer pending, followed by ``tokens``. Read those before it.

        Raises:
            InputError: See ``check_length``.
        """
        self.check_length(self.executor.position + len(self.pending) + len(tokens))
        if not self.pending:
            return tokens
        self.read_pending(len(self.pending) - 1)
        pending, self.pending = self.pending, []
        return np.array([*pending, *tokens], dtype=np.int64)

    def read_pending(self, count: int) -> None:
        """Read the first ``count`` pending tokens."""
        if count:
            tokens, self.pending = np.array(self.pending[:count], dtype=np.int64), self.pending[count:]
            self.read(tokens)

    def check_length(self, length: int) -> None:
        """Raise InputError if a text of ``length`` tokens is too long for the graph's rotary angles."""
        require_reach(length, self._max_length)

    def starts(self, tokens: Tokens) -> bool:
        """Return True if ``tokens`` start with the tokens read; False also if these are unknown."""
        return starts_with(tokens, self.executor.position, self.digest)

    def clear(self) -> None:
        """Return to the state before the first token."""
        self.executor.clear_state()
        self.pending, self.recent, self.prediction, self.digest = [], [], None, NO_TEXT
        self.seen.fill(False)

    def save(self, model: str) -> SavedState:
        """Return a copy. ``model``: see ``SavedState``."""
        return SavedState(
            self.executor.position,
            self.executor.read_state(),
            model=model,
            pending=tuple(self.pending),
            recent=tuple(self.recent),
            seen=np.flatnonzero(self.seen),
            logits=self.prediction.last_logits().copy() if self.prediction and not self.pending else None,
            digest=self.digest,
        )

    def load(self, state: SavedState) -> None:
        """Go to a saved state. Raises InputError, and changes nothing, if its tensors do not fit the model."""
        self.executor.write_state(state.position, state.tensors)
        self.pending, self.recent = ([int(token) for token in tokens] for tokens in (state.pending, state.recent))
        self.prediction = None if state.logits is None else StoredPrediction(state.logits)
        self.digest = state.digest if state.position else NO_TEXT
        self.seen.fill(False)
        if state.seen is not None:
            self.seen[state.seen] = True


def require_reach(length: int, max_length: int | None) -> None:
    """Raise InputError if a text of ``length`` tokens is too long. ``max_length``: see ``TextRecord``."""
    if max_length is not None and length > max_length:
        raise InputError(
            f"The package is of format 4 or older, whose graphs are inaccurate after {FLOAT32_REACH:,} tokens.",
            "Convert the checkpoint again: states saved by this package continue in the new one. Or call reset.",
        )


def digest_after(digest: str | None, tokens: Tokens) -> str | None:
    """Return the digest of a text after it has been extended by tokens; None if the text's digest is unknown.

    It takes the place of the tokens themselves, whose memory would grow with the text. Each token is hashed with the
    digest before it, so the result does not depend on how a text is split, and a saved digest can be extended.
    """
    if digest is None:
        return None
    encoded, latest = tokens.astype("<i4").tobytes(), digest.encode(errors="replace")
    for start in range(0, len(encoded), 4):
        latest = sha256(latest + encoded[start : start + 4]).hexdigest().encode()
    return latest.decode()


def starts_with(tokens: Tokens, count: int, digest: str | None) -> bool:
    """Return True if ``tokens`` start with the text of ``count`` tokens that has this digest; False if it is None."""
    return digest is not None and count <= len(tokens) and digest_after(NO_TEXT, tokens[:count]) == digest
