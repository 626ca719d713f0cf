"""A session: one text that a model reads and continues, in memory that does not grow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from tokenizers import Tokenizer

from liger_export.errors import InputError, NotFiniteError
from liger_export.package import Manifest
from liger_export.runtime.buffers import Array
from liger_export.runtime.continuation import Continuation
from liger_export.runtime.executor import Executor, Logits, Prediction, StoredPrediction, Tokens
from liger_export.runtime.finite import not_finite
from liger_export.runtime.generation import Generation, GenerationSettings
from liger_export.runtime.guard import Guard
from liger_export.runtime.prompt import PromptEncoder
from liger_export.runtime.sampling import Sampler, Sampling
from liger_export.runtime.saved_state import SavedState, model_identity

__all__ = ["Session"]

ENCODE = "Encode text with the package's own tokenizer."
RECENT_TOKENS = 16  # more than the bytes of a character
NO_TOKENS: Tokens = np.empty(0, dtype=np.int64)


class Session:
    """One text: an executor holds the model's state, the session the tokens it has not read yet.

    State lies in fixed buffers. Nothing is allocated per token, and memory does not depend on the length of the text.

    A session has one user at a time. While a thread is inside a call, other threads are refused with an InputError. So
    is every call that reads tokens while a generation is unfinished. A call that is interrupted, such as by Ctrl-C,
    leaves the session as before or as after the call, or unusable: then every call raises InputError until ``reset`` or
    ``load_state``.

    Attributes:
        manifest: The package's manifest.
        tokenizer: The package's tokenizer.
        executor: Runs the graph. Reading tokens with it directly bypasses the session's record of the text.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, executor: Executor) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.executor = executor
        self._prompts = PromptEncoder(tokenizer)
        self._guard = Guard()
        self._vocab_size = manifest.model_config.vocab_size
        self._seen = np.zeros(self._vocab_size, dtype=np.bool_)  # tokens in the text, for the repetition penalty
        self._pending: list[int] = []  # chosen by generate, not read by the model yet
        self._recent: list[int] = []  # the last tokens read
        self._prediction: Prediction | None = None  # of the token after the last one read
        self._model = model_identity(manifest)

    @property
    def lowering(self) -> str:
        """The graph that runs."""
        return self.executor.lowering

    @property
    def device(self) -> str:
        """The device that the graph runs on, ``cpu`` or ``cuda``."""
        return self.executor.device

    @property
    def position(self) -> int:
        """Number of tokens that the model has read. Raises InputError after an interrupted call."""
        self._guard.check_whole()
        return self.executor.position

    @property
    def length(self) -> int:
        """Number of tokens in the text, including the last one that ``generate`` chose."""
        return self.position + len(self._pending)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state. Tensors that are not updated in place also have a second buffer, not counted here."""
        return sum(entry.nbytes for entry in self.manifest.state)

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Read tokens and return the logits after the last one, float32 ``[vocab_size]``.

        Raises:
            InputError: There are no tokens, one is outside the vocabulary, or the session is in use or was interrupted.
        """
        tokens = self._checked(token_ids)
        with self._guard.change():
            tokens = self._take_pending(tokens)
            if not len(tokens):
                raise _no_tokens()
            self._read(tokens)
            return self.executor.last_logits().copy()

    def step(self, token_id: int) -> Logits:
        """Read one token and return the logits after it, float32 ``[vocab_size]``. Raises as ``prefill``."""
        return self.prefill([token_id])

    def all_logits(self, token_ids: Sequence[int]) -> Logits:
        """Read tokens and return the logits after each, float32 ``[T, vocab_size]``. Raises as ``prefill``."""
        if not len(token_ids):
            raise _no_tokens()
        tokens = self._checked(token_ids)
        with self._guard.change():
            tokens = self._take_pending(tokens)
            logits = self.executor.read_with_all_logits(tokens)
            self._record(tokens, StoredPrediction(logits[-1].copy()))
        return logits[-len(token_ids) :]

    def encode(
        self, prompt: str | Sequence[int], *, add_special_tokens: bool = True, parse_special_tokens: bool = False
    ) -> list[int]:
        """Return the token ids that ``feed`` and ``generate`` read for a prompt.

        Args:
            prompt: Text, or token ids, which are returned as they are.
            add_special_tokens: At the start of a text, add the tokens that the tokenizer puts there, such as BOS,
                unless the prompt starts with them.
            parse_special_tokens: Read special tokens that are written in the prompt, as a rendered chat template needs.
                By default they stay text, because a user may have written them.

        Raises:
            InputError: The prompt is not valid Unicode, a token id is outside the vocabulary, or the tokenizer cannot
                encode a special token as text.
        """
        if not isinstance(prompt, str):
            token_ids: list[int] = self._checked(prompt).tolist()
            return token_ids
        adds = add_special_tokens and self.length == 0
        return self._prompts.encode(prompt, add_special_tokens=adds, parse_special_tokens=parse_special_tokens)

    def feed(
        self, prompt: str | Sequence[int], *, add_special_tokens: bool = True, parse_special_tokens: bool = False
    ) -> int:
        """Read a prompt at once. ``generate("")`` continues it. For the arguments and errors see ``encode``.

        Returns:
            Number of tokens read. That includes the last token that ``generate`` chose.
        """
        token_ids = self.encode(
            prompt, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
        )
        with self._guard.change():
            tokens = self._take_pending(self._checked(token_ids))
            if len(tokens):
                self._read(tokens)
        return len(tokens)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        add_special_tokens: bool = True,
        parse_special_tokens: bool = False,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
    ) -> Continuation:
        """Return an iterator that reads a prompt and yields the text of its continuation, piece by piece.

        Continues the session's text: a second call starts where the first one ended. Ends at an end-of-text token, at a
        stop string (which is not yielded), or after ``max_new_tokens``.

        Nothing is read before the first piece is requested, and an iterator that is discarded before leaves the session
        as it was. ``feed`` reads a prompt at once.

        Args:
            prompt: Text or token ids to read first.
            add_special_tokens: See ``encode``.
            parse_special_tokens: See ``encode``.
            max_new_tokens: Largest number of tokens to choose.
            sampling: How to choose them; greedy by default.
            stop: Strings to stop at. A special token in them matches that token, which has no text, and its name.

        Raises:
            InputError: The prompt has no tokens or is refused by ``encode``, ``max_new_tokens`` is not a number of
                tokens, or a stop string is empty or not text. The iterator raises NotFiniteError, which is one, if the
                logits are not finite.
        """
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        settings = GenerationSettings(max_new_tokens=max_new_tokens, sampling=sampling or Sampling(), stop=stop)
        prompt_ids = self.encode(
            prompt, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
        )
        end_ids = self.manifest.model_config.eos_token_ids
        context = [*self._recent, *self._pending, *prompt_ids]
        generation = Generation(settings, self.tokenizer, context, end_ids=end_ids, seen=self._seen)
        if not (prompt_ids or self._pending or self._prediction):
            raise _no_tokens() if self.position == 0 else _no_logits()
        unread = [self._checked(prompt_ids)]
        return Continuation(self._guard, partial(self._advance, generation, unread))

    def sample_tokens(self, count: int, sampling: Sampling) -> list[int]:
        """Start a new text and choose ``count`` tokens. End-of-text tokens do not end it.

        Raises:
            NotFiniteError: The logits are not finite.
        """
        with self._guard.replace():
            self._clear()
            sampler = Sampler(sampling, self._seen)
            tokens = [self.manifest.model_config.bos_token_id or 0]
            while len(tokens) < count:
                self.executor.request_top_logits(sampler.top_logits_temperature)
                self._read(self._checked(tokens[-1:]))
                with self._naming_the_place(self.executor):
                    tokens.append(sampler.choose_next(self.executor))
        return tokens

    def reset(self) -> None:
        """Start a new text. This ends an unfinished generation, and makes an interrupted session usable again."""
        with self._guard.replace():
            self._clear()

    def fork(self) -> "Session":
        """Return a second session on the same weights, which starts from a copy of this one's state."""
        other = Session(self.manifest, self.tokenizer, self.executor.fresh())
        other._prompts = self._prompts  # may hold a copy of the tokenizer
        other.load_state(self.state())
        return other

    def state(self) -> SavedState:
        """Return a copy of everything that the rest of the text depends on, except for a generation's random seed."""
        with self._guard.read():
            logits = self._prediction.last_logits().copy() if self._prediction and not self._pending else None
            return SavedState(
                self.executor.position,
                self.executor.read_state(),
                model=self._model,
                pending=tuple(self._pending),
                recent=tuple(self._recent),
                seen=np.flatnonzero(self._seen),
                logits=logits,
            )

    def load_state(self, state: SavedState) -> None:
        """Continue from a saved state. This ends an unfinished generation, as ``reset`` does.

        Raises:
            InputError: The state belongs to another model, or is damaged.
        """
        if state.model not in (None, self._model):
            raise InputError(
                "The saved state belongs to another model.", "Load it with a package of the checkpoint that it is from."
            )
        pending, recent = (self._checked(tokens).tolist() for tokens in (state.pending, state.recent))
        seen = self._checked(NO_TOKENS if state.seen is None else state.seen)
        if state.logits is not None and state.logits.shape != (self._vocab_size,):
            raise InputError(f"The saved state's logits are not [{self._vocab_size}].", "Load a state that save wrote.")
        with self._guard.replace():
            self.executor.write_state(state.position, state.tensors)
            self._pending, self._recent = pending, recent
            self._seen.fill(False)
            self._seen[seen] = True
            self._prediction = None if state.logits is None else StoredPrediction(state.logits)

    def run(self, token_ids: Tokens, position: int, past: dict[str, Array]) -> tuple[Logits, dict[str, Array]]:
        """Run the graph on any batch without touching this session's state.

        The rows run one after the other in an engine directory, and on a CPU where several sequences continue by more
        than one token.

        Args:
            token_ids: int64 ``[B, T]``.
            position: Number of tokens that each sequence has read.
            past: State tensors by input name, each ``[B, ...]``, as in ``SavedState``.

        Returns:
            Logits, float32 ``[B, T, vocab_size]``, and the next state by input name.

        Raises:
            InputError: There are no tokens, or one is outside the vocabulary.
        """
        if not token_ids.size:
            raise _no_tokens()
        self._check_vocabulary(token_ids)
        return self.executor.run(token_ids, position, past)

    def buffer_addresses(self) -> list[int]:
        """Return the addresses of the state buffers. They are constant for the session's lifetime."""
        return self.executor.buffer_addresses()

    def _checked(self, token_ids: Sequence[int] | Tokens) -> Tokens:
        """Return token ids as int64 [T]. Raises InputError if they are malformed or outside the vocabulary."""
        try:
            tokens = np.asarray(token_ids)
        except ValueError:  # lists of different lengths
            raise _not_token_ids(token_ids) from None
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise _not_token_ids(token_ids)
        self._check_vocabulary(tokens)
        return tokens.astype(np.int64, copy=False)

    def _check_vocabulary(self, tokens: Tokens) -> None:
        outside = tokens[(tokens < 0) | (tokens >= self._vocab_size)]
        if outside.size:
            raise InputError(f"Token id {outside[0]} is outside the vocabulary of {self._vocab_size} entries.", ENCODE)

    def _take_pending(self, tokens: Tokens) -> Tokens:
        """Return the pending token, which is then no longer pending, followed by ``tokens``."""
        if not self._pending:
            return tokens
        pending, self._pending = self._pending, []
        return np.array([*pending, *tokens], dtype=np.int64)

    def _read(self, tokens: Tokens) -> None:
        self.executor.read(tokens)
        self._record(tokens, self.executor)

    def _record(self, tokens: Tokens, prediction: Prediction) -> None:
        """Record tokens that the model has read, and its prediction of the next one."""
        self._seen[tokens] = True
        self._recent = [*self._recent, *tokens[-RECENT_TOKENS:].tolist()][-RECENT_TOKENS:]
        self._prediction = prediction

    def _advance(self, generation: Generation, unread: list[Tokens], user: Continuation) -> tuple[list[str], bool]:
        """Read the pending token and, the first time, the prompt. Then choose the next token. See ``Continuation``."""
        with self._guard.change(user):
            tokens = self._take_pending(unread.pop() if unread else NO_TOKENS)
            if len(tokens):
                self.executor.request_top_logits(generation.top_logits_temperature)
                self._read(tokens)
            if generation.finished or self._prediction is None:
                return [], True
            with self._naming_the_place(self._prediction):
                token, pieces = generation.advance(self._prediction)
            self._pending = [] if token is None else [token]
        return pieces, generation.finished

    @contextmanager
    def _naming_the_place(self, prediction: Prediction) -> Iterator[None]:
        """Add to a NotFiniteError where in the model the first value was too large."""
        try:
            yield
        except NotFiniteError:
            raise not_finite(self.manifest, self.executor.read_state(), prediction.last_logits()) from None

    def _clear(self) -> None:
        self.executor.clear_state()
        self._pending, self._recent, self._prediction = [], [], None
        self._seen.fill(False)


def _not_token_ids(value: object) -> InputError:
    return InputError(f"{value!r} is not a sequence of token ids.", ENCODE)


def _no_tokens() -> InputError:
    return InputError("There are no tokens to read.", "Pass at least one token.")


def _no_logits() -> InputError:
    return InputError("The loaded state was saved without the logits of its next token.", "Pass a prompt.")
