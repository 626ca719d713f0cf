"""Requests to ``/v1/chat/completions`` and ``/v1/completions``, from an allow list of fields."""

from dataclasses import dataclass, replace
from typing import Any

from liger_export.errors import InputError
from liger_export.runtime import Sampling
from liger_export.runtime.generation import GenerationSettings
from liger_export.serve.errors import ApiError, error_of
from liger_export.serve.fields import Fields, bias_of
from liger_export.serve.settings import ServeSettings

__all__ = ["ChatRequest", "CompletionRequest", "Defaults", "Prompt", "read_chat", "read_completion", "require_field"]

Prompt = str | tuple[int, ...]

ROLES = ("system", "developer", "user", "assistant")
COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
MOST_TOP_LOGPROBS, MOST_STOPS, MOST_PROMPTS = 20, 16, 64
LARGEST_SEED = (1 << 63) - 1
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Limits and defaults that the fields of a request depend on.

    Attributes:
        sampling: The package's defaults.
        vocab_size: Size of the vocabulary.
        limits: The server's limits.
    """

    sampling: Sampling
    vocab_size: int
    limits: ServeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to be answered.

    Attributes:
        messages: The conversation.
        settings: How to answer.
        count: Number of answers.
        is_streamed: True for server-sent events.
        includes_usage: True for an event with the number of tokens at the end.
    """

    messages: tuple[dict[str, str], ...]
    settings: GenerationSettings
    count: int
    is_streamed: bool
    includes_usage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """Prompts to be continued. For the other attributes see ``ChatRequest``.

    Attributes:
        prompts: Texts, or lists of token ids.
    """

    prompts: tuple[Prompt, ...]
    settings: GenerationSettings
    count: int
    is_streamed: bool
    includes_usage: bool


def read_chat(fields: Fields, defaults: Defaults) -> ChatRequest:
    """Read a request to ``/v1/chat/completions``, whose ``model`` has been read. Raises ApiError."""
    messages = _messages(fields)
    most = fields.integer("max_completion_tokens", 1, defaults.limits.max_new_tokens)
    older = fields.integer("max_tokens", 1, defaults.limits.max_new_tokens)
    if most is not None and older is not None and most != older:
        raise fields.wrong("max_tokens", "omitted, or equal to 'max_completion_tokens'")
    has_logprobs, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if top is not None and not has_logprobs:
        raise fields.wrong("top_logprobs", "omitted where 'logprobs' is not true")
    fields.neutral("response_format", {"type": "text"})
    fields.neutral("tool_choice", "none")
    fields.neutral("tools", [])
    fields.neutral("modalities", ["text"])
    new_tokens = most or older or defaults.limits.max_new_tokens
    top_logprobs = (top or 0) if has_logprobs else None
    common = _common(fields, defaults, CHAT, new_tokens, top_logprobs)
    return ChatRequest(messages=messages, **common)


def read_completion(fields: Fields, defaults: Defaults) -> CompletionRequest:
    """Read a request to ``/v1/completions``, whose ``model`` has been read. Raises ApiError."""
    prompts = _prompts(fields)
    new_tokens = fields.integer("max_tokens", 0, defaults.limits.max_new_tokens)
    if new_tokens is None:
        new_tokens = min(COMPLETION_TOKENS, defaults.limits.max_new_tokens)
    top_logprobs = fields.integer("logprobs", 0, MOST_TOP_LOGPROBS)
    fields.neutral("echo", False)
    fields.neutral("best_of", 1)
    fields.neutral("suffix", "")
    common = _common(fields, defaults, COMPLETIONS, new_tokens, top_logprobs)
    return CompletionRequest(prompts=prompts, **common)


def _common(
    fields: Fields, defaults: Defaults, endpoint: str, new_tokens: int, top_logprobs: int | None
) -> dict[str, Any]:
    """Read the fields that both endpoints have, and refuse all others."""
    limits = defaults.limits
    count = fields.integer("n", 1, limits.slots + limits.queue) or 1
    is_streamed = fields.flag("stream") or False
    options = fields.object_of("stream_options")
    includes_usage = False
    if options is not None:
        if not is_streamed:
            raise fields.wrong("stream_options", "omitted where 'stream' is not true")
        includes_usage = options.flag("include_usage") or False
        options.require_empty(endpoint)
    fields.text("user")  # says who asks, which changes nothing
    fields.neutral("store", False)
    sampling, stop = _sampling(fields, defaults), _stop(fields)
    stop_tokens = fields.list_of("stop_token_ids", int, MOST_STOPS) or ()
    if not all(0 <= token < defaults.vocab_size for token in stop_tokens):
        raise fields.wrong("stop_token_ids", f"token ids below {defaults.vocab_size}")
    least = fields.integer("min_tokens", 0, new_tokens) or 0
    ignore_eos = fields.flag("ignore_eos") or False
    fields.require_empty(endpoint)
    settings = GenerationSettings(
        max_new_tokens=new_tokens,
        min_tokens=least,
        sampling=sampling,
        stop=stop,
        stop_token_ids=stop_tokens,
        ignore_eos=ignore_eos,
        top_logprobs=top_logprobs,
    )
    return {"settings": settings, "count": count, "is_streamed": is_streamed, "includes_usage": includes_usage}


def _sampling(fields: Fields, defaults: Defaults) -> Sampling:
    """Read how to choose tokens. What is absent is as in the package's ``generation_config.json``."""
    given = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "min_p": fields.number("min_p", 0, 1),
        "top_k": fields.integer("top_k", 0, defaults.vocab_size),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 100),
        "seed": fields.integer("seed", 0, LARGEST_SEED),
        "logit_bias": bias_of(fields, "logit_bias", defaults.vocab_size) or None,
    }
    if given["top_p"] == 0:
        raise fields.wrong("top_p", "greater than 0 and at most 1")
    named = {name: value for name, value in given.items() if value is not None}
    return replace(defaults.sampling, **named)  # type: ignore[arg-type]


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.any("stop")
    strings = [value] if isinstance(value, str) else value or []
    if not isinstance(strings, list) or len(strings) > MOST_STOPS:
        raise fields.wrong("stop", f"a string or a list of at most {MOST_STOPS} strings")
    try:
        return GenerationSettings(stop=tuple(strings)).stop
    except InputError as error:
        raise error_of(error, "stop") from error


def _messages(fields: Fields) -> tuple[dict[str, str], ...]:
    values = fields.any("messages")
    if not isinstance(values, list) or not values:
        raise fields.wrong("messages", "a list of at least one message")
    return tuple(_message(value, f"messages[{index}]") for index, value in enumerate(values))


def _message(value: object, path: str) -> dict[str, str]:
    fields = Fields(value, path)
    role = fields.text("role")
    if role not in ROLES:
        raise fields.wrong("role", f"one of {', '.join(ROLES)}")
    content = fields.any("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{path}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise fields.wrong("content", "a string or a list of parts of type text")
    message = {"role": "system" if role == "developer" else role, "content": content}
    reasoning = fields.text("reasoning_content")
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    fields.neutral("tool_calls", [])
    fields.require_empty("A message")
    return message


def _part(value: object, path: str) -> str:
    fields = Fields(value, path)
    kind, text = fields.text("type"), fields.text("text")
    if kind != "text":
        raise fields.wrong("type", "'text'; other kinds of content are not supported", "unsupported_field")
    if text is None:
        raise fields.wrong("text", "a string")
    fields.require_empty("A part")
    return text


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    value = fields.any("prompt")
    allowed = f"a string, a list of token ids, or a list of at most {MOST_PROMPTS} of these"
    is_single = isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int)
    prompts = [value] if is_single else value
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= MOST_PROMPTS:
        raise fields.wrong("prompt", allowed)
    return tuple(_prompt(fields, prompt, allowed) for prompt in prompts)


def _prompt(fields: Fields, value: object, allowed: str) -> Prompt:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(type(token) is int for token in value):
        raise fields.wrong("prompt", allowed)
    if not all(0 <= token < 1 << 31 for token in value):
        raise fields.wrong("prompt", "token ids of the model's vocabulary")
    return tuple(value)


def require_field(fields: Fields, name: str) -> str:
    """Read a string that every request has. Raises ApiError if it is absent."""
    value = fields.text(name)
    if value is None:
        raise ApiError(400, f"{name!r} is missing.", param=name, code="missing_field")
    return value
