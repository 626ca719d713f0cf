"""A package that is served: its prompts, its scheduler and its states of earlier texts."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from liger_export.errors import BusyError, InputError
from liger_export.runtime import Scheduler, Session
from liger_export.runtime.closing import Closing
from liger_export.runtime.prefix_files import PrefixFiles
from liger_export.runtime.prefix_store import PrefixStore
from liger_export.runtime.saved_state import package_identity
from liger_export.runtime.streams import Request, Stream
from liger_export.serve.errors import ApiError, error_of
from liger_export.serve.requests import ChatRequest, CompletionRequest, Defaults
from liger_export.serve.settings import ServeSettings

__all__ = ["ServedModel", "open_models"]


class ServedModel(Closing):
    """A package under a name. At the end of a ``with`` block it closes itself.

    Attributes:
        name: What requests call it.
        session: A session of the package. Its own text is not used.
        scheduler: Answers requests.
        store: States of earlier texts.
        created: When it was opened, in seconds since 1970.
        defaults: What the fields of its requests depend on.
    """

    def __init__(
        self, name: str, session: Session, settings: ServeSettings, files: PrefixFiles | None = None, *, share: int = 1
    ) -> None:
        """Start the scheduler.

        Args:
            name: See above.
            session: See above.
            settings: The server's settings.
            files: Where states outlive the server.
            share: Number of models that share the memory for states.
        """
        self.name, self.session, self.created = name, session, int(time.time())
        identity = package_identity(session.manifest)
        self.store = PrefixStore(identity, memory_bytes=settings.memory_bytes // share, files=files)
        if session.prefix is not None:
            self.store.add(session.prefix.tokens, session.prefix.state)
        self.scheduler = Scheduler(session, slots=settings.slots, queue_length=settings.queue, prefix_states=self.store)
        vocab_size = session.manifest.model_config.vocab_size
        self.defaults = Defaults(sampling=session.defaults.sampling, vocab_size=vocab_size, limits=settings)

    def warm_up(self) -> None:
        """Do once what takes longer the first time: a template, a tokenizer and calls of the model."""
        with suppress(InputError):  # no template, or one that refuses this message
            self.session.chat([{"role": "user", "content": "Hello"}], max_new_tokens=1).close()
        for token in (0, 0):
            self.session.step(token)
        self.session.reset()

    def describe(self) -> dict[str, object]:
        """Return the model's entry in ``/v1/models``."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "liger-export",
            "state_bytes": self.session.state_bytes,
        }

    def chat_prompt(self, request: ChatRequest) -> tuple[int, ...]:
        """Return the token ids of a conversation. Raises ApiError."""
        try:
            return self._within_limit(self.session.encode_chat(request.messages), "messages")
        except InputError as error:
            raise error_of(error, "messages") from error

    def prompts(self, request: CompletionRequest) -> list[tuple[int, ...]]:
        """Return the token ids of each prompt. Special tokens in a text are read as such. Raises ApiError."""
        try:
            encoded = [self.session.encode(prompt, parse_special_tokens=True) for prompt in request.prompts]
        except InputError as error:
            raise error_of(error, "prompt") from error
        return [self._within_limit(tokens, "prompt") for tokens in encoded]

    def submit(self, prompts: Sequence[tuple[int, ...]], request: ChatRequest | CompletionRequest) -> list[Stream]:
        """Queue the answers to each prompt, those to one prompt beside each other. Raises ApiError.

        All are queued, or none.
        """
        limits = self.defaults.limits
        if len(prompts) * request.count > limits.slots + limits.queue:
            most = f"at most {limits.slots + limits.queue} answers in one request"
            raise ApiError(400, f"Ask for {most}.", param="n", code="invalid_value")
        if not self.scheduler.is_running:
            raise ApiError(503, "The model has stopped after an error. Restart the server.", code="model_stopped")
        streams: list[Stream] = []
        try:
            for prompt in prompts:
                streams += self.scheduler.submit_several(Request(prompt, request.settings), request.count)
        except (InputError, BusyError) as error:
            for stream in streams:
                stream.cancel()
            raise error_of(error) from error
        return streams

    def close(self) -> None:
        """Cancel the answers that are left, and write the states."""
        self.scheduler.close()
        self.store.close()

    def _within_limit(self, tokens: list[int], param: str) -> tuple[int, ...]:
        most = self.defaults.limits.max_prompt_tokens
        if not 1 <= len(tokens) <= most:
            found = f"The prompt has {len(tokens):,} tokens. It must have from 1 to {most:,}."
            raise ApiError(400, found, param=param, code="context_length_exceeded" if tokens else "invalid_value")
        return tuple(tokens)


def open_models(sessions: dict[str, Session], settings: ServeSettings) -> dict[str, ServedModel]:
    """Return the served models of sessions by name. Raises OutputError if the state directory cannot be written."""
    directory: Path | None = settings.state_dir
    files = None if directory is None else PrefixFiles(directory, settings.state_bytes)
    share = max(len(sessions), 1)
    return {name: ServedModel(name, session, settings, files, share=share) for name, session in sessions.items()}
