"""Answers in OpenAI's form: whole, and as events."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from tokenizers import Tokenizer

from liger_export.runtime.pieces import Piece, Token
from liger_export.runtime.streams import Stream

__all__ = ["Chat", "Completion", "usage_of"]

REPLACEMENT = "\ufffd"


@dataclass(slots=True)
class _Answer:
    """Common part of all answers.

    Attributes:
        model: Name of the model.
        tokenizer: Its tokenizer.
        has_logprobs: True if log-probabilities were requested.
        includes_usage: See ``ChatRequest``.
        id: A new name.
        created: The time, in seconds since 1970.
        lengths: Number of characters so far by choice.
    """

    model: str
    tokenizer: Tokenizer
    has_logprobs: bool
    includes_usage: bool = False
    id: str = field(default_factory=lambda: token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    lengths: dict[int, int] = field(default_factory=dict)

    def usage_event(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the event with the number of tokens."""
        return {**self._event([]), "usage": usage}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def _with_usage(self, event: dict[str, Any]) -> dict[str, Any]:
        return {**event, "usage": None} if self.includes_usage else event

    def _token(self, token_id: int) -> str:
        text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return text


class Chat(_Answer):
    """An answer of ``/v1/chat/completions``."""

    def start(self, index: int) -> dict[str, Any] | None:
        """Return the first event of a choice."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._with_usage(self._event([choice]))

    def event(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the event for a piece of a choice."""
        delta = {"content": str(piece)} if piece else {}
        logprobs = self._logprobs(piece.tokens)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        return self._with_usage(self._event([choice]))

    def whole(self, choices: Sequence[list[Piece]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(pieces), "refusal": None},
                "logprobs": self._logprobs([token for piece in pieces for token in piece.tokens]),
                "finish_reason": pieces[-1].finish_reason,
            }
            for index, pieces in enumerate(choices)
        ]
        return {**self._event(listed), "object": "chat.completion", "usage": usage}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        named = {"id": f"chatcmpl-{self.id}", "object": "chat.completion.chunk", "created": self.created}
        return {**named, "model": self.model, "choices": choices}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        content = [
            {
                **self._described(token.id, token.logprob),
                "top_logprobs": [self._described(other, logprob) for other, logprob in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _described(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        text = self._token(token_id)
        return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


class Completion(_Answer):
    """An answer of ``/v1/completions``."""

    def start(self, index: int) -> dict[str, Any] | None:
        """Return the first event of a choice: there is none."""
        return None

    def event(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the event for a piece of a choice."""
        return self._with_usage(self._event([self._choice(index, [piece])]))

    def whole(self, choices: Sequence[list[Piece]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        return {**self._event([self._choice(index, pieces) for index, pieces in enumerate(choices)]), "usage": usage}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        named = {"id": f"cmpl-{self.id}", "object": "text_completion", "created": self.created}
        return {**named, "model": self.model, "choices": choices}

    def _choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        logprobs = self._logprobs(index, [token for piece in pieces for token in piece.tokens])
        reason = pieces[-1].finish_reason
        return {"index": index, "text": "".join(pieces), "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        texts, offsets = [self._token(token.id) for token in tokens], []
        for text in texts:
            offsets.append(self.lengths.get(index, 0))
            self.lengths[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._token(other): logprob for other, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }


def usage_of(streams: Sequence[Stream], per_prompt: int) -> dict[str, Any]:
    """Return the number of tokens. Each prompt, of which there are ``per_prompt`` answers, counts once."""
    firsts = streams[::per_prompt]
    prompt, answer = sum(each.prompt_tokens for each in firsts), sum(each.generated_tokens for each in streams)
    cached = sum(each.cached_tokens or 0 for each in firsts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
