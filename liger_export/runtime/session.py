"""A session: one text that a model reads and continues, in memory that does not grow."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
from tokenizers import Tokenizer

from liger_export.errors import InputError
from liger_export.package import FLOAT32_REACH, Manifest
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.runtime.buffers import Array
from liger_export.runtime.chat import Turn
from liger_export.runtime.chat_template import ChatTemplate, Message, no_template
from liger_export.runtime.continuation import Continuation
from liger_export.runtime.defaults import GenerationDefaults
from liger_export.runtime.executor import Executor, Logits, StoredPrediction, Tokens
from liger_export.runtime.generation import MoreSettings, settings_of
from liger_export.runtime.guard import Guard
from liger_export.runtime.loadable import random_of, require_loadable
from liger_export.runtime.prompt import PromptEncoder, checked_rows, checked_tokens
from liger_export.runtime.reader import Reader
from liger_export.runtime.record import TextRecord
from liger_export.runtime.sampling import Sampler, Sampling
from liger_export.runtime.saved_state import SavedState
from liger_export.runtime.shipped_prefix import ShippedPrefix
from liger_export.runtime.state_buffers import require_tensors
from liger_export.state import MAX_POSITION

__all__ = ["Session"]


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
        chat_template: The package's chat template, if it may have one.
        prefix: The state that the package ships. ``chat`` starts from it where it can; ``load_state`` loads it.
        defaults: How ``generate`` and ``chat`` choose tokens by default.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        executor: Executor,
        *,
        chat_template: ChatTemplate | None = None,
        defaults: GenerationDefaults | None = None,
        prefix: ShippedPrefix | None = None,
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.executor = executor
        self.chat_template = chat_template
        self.defaults = defaults or GenerationDefaults()
        self.prefix = prefix
        self._prompts = PromptEncoder(tokenizer)
        self._guard = Guard()
        self._vocab_size = manifest.model_config.vocab_size
        has_exact_angles = manifest.graphs[executor.lowering].exact_angles
        self._text = TextRecord(executor, self._vocab_size, None if has_exact_angles else FLOAT32_REACH)
        self._reader = Reader(manifest, tokenizer, self._text, self._guard, None if prefix is None else prefix.state)

    @property
    def turn(self) -> Turn | None:
        """The last prompt that ``chat`` read."""
        return self._reader.turn

    @turn.setter
    def turn(self, turn: Turn | None) -> None:
        self._reader.turn = turn

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
        return self.position + len(self._text.pending)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state. Tensors that are not updated in place also have a second buffer, not counted here."""
        return sum(entry.nbytes for entry in self.manifest.state)

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Read tokens and return the logits after the last one, float32 ``[vocab_size]``.

        Raises:
            InputError: There are no tokens, one is outside the vocabulary, the text becomes too long for a package of
                an older format, or the session is in use or was interrupted.
        """
        tokens = self._checked(token_ids)
        with self._guard.change():
            tokens = self._text.take_pending(tokens)
            if not len(tokens):
                raise _no_tokens()
            self._text.read(tokens)
            return self.executor.last_logits().copy()

    def step(self, token_id: int) -> Logits:
        """Read one token and return the logits after it, float32 ``[vocab_size]``. Raises as ``prefill``."""
        return self.prefill([token_id])

    def all_logits(self, token_ids: Sequence[int]) -> Logits:
        """Read tokens and return the logits after each, float32 ``[T, vocab_size]``. Raises as ``prefill``."""
        tokens = self._checked(token_ids)
        if not len(tokens):
            raise _no_tokens()
        count = len(tokens)
        with self._guard.change():
            tokens = self._text.take_pending(tokens)
            logits = self.executor.read_with_all_logits(tokens)
            self._text.record(tokens, StoredPrediction(logits[-1].copy()))
        return logits[-count:]

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

    def encode_chat(self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None) -> list[int]:
        """Return the token ids of a conversation's whole prompt, as ``chat`` reads it. For the arguments see ``chat``.

        Raises:
            InputError: The package has no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise no_template()
        text = self.chat_template.render(messages, tools=tools)
        return self.encode(text, add_special_tokens=False, parse_special_tokens=True)

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
            tokens = self._text.take_pending(self._checked(token_ids))
            if len(tokens):
                self._text.read(tokens)
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
        progress: Progress = NO_PROGRESS,
        **more: Unpack[MoreSettings],
    ) -> Continuation:
        """Return an iterator that reads a prompt and yields the text of its continuation, piece by piece.

        Continues the session's text: a second call starts where the first one ended. Ends at an end-of-text token, at a
        stop string (which is not yielded), or after ``max_new_tokens``.

        Nothing is read before the first piece is requested, and an iterator that is discarded before leaves the session
        as it was. ``feed`` reads a prompt at once. Each piece is a ``str`` that also has its tokens; see ``Piece``.

        Args:
            prompt: Text or token ids to read first.
            add_special_tokens: See ``encode``.
            parse_special_tokens: See ``encode``.
            max_new_tokens: Largest number of tokens to choose.
            sampling: How to choose them; default: ``defaults.sampling``, of the package's ``generation_config.json``.
            stop: Strings to stop at. A special token in them matches that token, which has no text, and its name.
            progress: Counts the tokens of the prompt that are read.
            more: Further fields of ``GenerationSettings``: ``min_tokens``, ``stop_token_ids``, ``ignore_eos``,
                ``top_logprobs`` and ``lookup``.

        Raises:
            InputError: The prompt has no tokens or is refused by ``encode``, a setting is refused by
                ``GenerationSettings``, or the graph cannot do ``lookup``. The iterator raises NotFiniteError, which is
                one, if the logits are not finite.
        """
        prompt_ids = self.encode(
            prompt, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
        )
        if not (prompt_ids or self._text.pending or self._text.prediction):
            raise _no_tokens() if self.position == 0 else _no_logits()
        context = [*self._text.recent, *self._text.pending, *prompt_ids]
        settings = settings_of(self.defaults, max_new_tokens, sampling, stop, more)
        return self._reader.continue_after(self._checked(prompt_ids), context, settings, progress)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        progress: Progress = NO_PROGRESS,
        **more: Unpack[MoreSettings],
    ) -> Continuation:
        """Return an iterator that reads a conversation and yields the assistant's answer, piece by piece.

        The answer is that of a new session that reads all messages with the package's chat template. If the prompt
        starts with the session's text, only the rest is read. Otherwise, if it starts with the last prompt of ``chat``,
        the session goes back to that: when an answer is generated again, or the template drops its reasoning. Otherwise
        the session starts over, from ``prefix`` if the prompt starts with it. ``turn`` keeps one copy of the state for
        this.

        As with ``generate``, nothing is read or dropped before the first piece is requested, and ``generate("")``
        continues the answer.

        Args:
            messages: The conversation. See ``ChatTemplate.render``, also for its errors. As in transformers, special
                tokens that are written in a message are read as such.
            tools: JSON schemas of functions that the model may call.
            max_new_tokens: See ``generate``.
            sampling: See ``generate``.
            stop: See ``generate``.
            progress: See ``generate``.
            more: See ``generate``.

        Raises:
            InputError: As ``generate``, or the package has no chat template, or the template refuses the messages.
        """
        prompt = self._checked(self.encode_chat(messages, tools=tools))
        if not len(prompt):
            raise _no_tokens()
        settings = settings_of(self.defaults, max_new_tokens, sampling, stop, more)
        return self._reader.answer(prompt, settings, progress)

    def sample_tokens(self, count: int, sampling: Sampling) -> list[int]:
        """Start a new text and choose ``count`` tokens. End-of-text tokens do not end it.

        Raises:
            InputError: ``count`` is not a positive integer. NotFiniteError, which is one, if the logits are not finite.
        """
        if not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"The number of tokens is {count!r}.", "It must be an integer, 1 or more.")
        self._text.check_length(count)
        with self._guard.replace():
            self._text.clear()
            sampler = Sampler(sampling, self._text.seen)
            tokens = [self.manifest.model_config.bos_token_id or 0]
            while len(tokens) < count:
                self.executor.request_top_logits(sampler.top_logits_temperature)
                self._text.read(self._checked(tokens[-1:]))
                with self._reader.naming_the_place(self.executor):
                    tokens.append(sampler.choose_next(self.executor))
        return tokens

    def reset(self) -> None:
        """Start a new text. This ends an unfinished generation, and makes an interrupted session usable again."""
        with self._guard.replace():
            self._text.clear()

    def fork(self) -> "Session":
        """Return a second session on the same weights, which starts from a copy of this one's state."""
        other = Session(
            self.manifest,
            self.tokenizer,
            self.executor.fresh(),
            chat_template=self.chat_template,
            defaults=self.defaults,
            prefix=self.prefix,
        )
        other._prompts = self._prompts  # may hold a copy of the tokenizer
        other.load_state(replace(self.state(), random=None))  # so that several completions of one prompt differ
        other.turn = self.turn
        return other

    def state(self) -> SavedState:
        """Return a copy of everything that the rest of the text depends on, the random numbers included."""
        with self._guard.read():
            return self._reader.save()

    def load_state(self, state: SavedState) -> None:
        """Continue from a saved state. This ends an unfinished generation, as ``reset`` does.

        Random choices without a seed go on where those of the saved session were.

        Raises:
            InputError: The state belongs to another model, is damaged, or holds NaN or infinity.
        """
        require_loadable(state, self.manifest)
        random = self._reader.random if state.random is None else random_of(state)
        with self._guard.replace():
            self._text.load(state)
            self._reader.random = random

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
            InputError: There are no tokens, one is outside the vocabulary, the position is not supported, or a state
                tensor is missing or has another shape or dtype.
        """
        tokens = checked_rows(token_ids, self._vocab_size)
        if not isinstance(position, int | np.integer) or not 0 <= position <= MAX_POSITION:
            raise InputError(f"The position is {position!r}.", f"Pass the tokens read so far, at most {MAX_POSITION}.")
        require_tensors(self.manifest.state, past, len(tokens))
        self._text.check_length(position + tokens.shape[1])
        return self.executor.run(tokens, position, past)

    def buffer_addresses(self) -> list[int]:
        """Return the addresses of the state buffers. They are constant for the session's lifetime."""
        return self.executor.buffer_addresses()

    def _checked(self, token_ids: Sequence[int] | Tokens) -> Tokens:
        return checked_tokens(token_ids, self._vocab_size)


def _no_tokens() -> InputError:
    return InputError("There are no tokens to read.", "Pass at least one token.")


def _no_logits() -> InputError:
    return InputError("The loaded state was saved without the logits of its next token.", "Pass a prompt.")
