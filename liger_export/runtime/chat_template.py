"""Chat templates: a conversation to the text that the model was trained on, as transformers renders it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.extras import install_command, required_extra
from liger_export.files import TOOL_USE_TEMPLATE, read_json

__all__ = ["ChatTemplate", "Message", "no_template"]

Message = Mapping[str, Any]

OLDEST_JINJA = "3.1.6"  # templates come with the model, and can leave the sandbox of older versions
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning, the usual one first
MESSAGE_FORM = 'Pass messages such as {"role": "user", "content": "Hello"}.'


class ChatTemplate:
    """The chat templates of a package, and the special tokens that they name. Files are read when first needed.

    Jinja's sandbox limits what a template can reach, but not how long it runs or how much text it makes: a template
    that never ends hangs the caller. Use packages whose source you trust that far.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def render(self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None) -> str:
        """Return the text of a conversation, up to where the assistant's next message begins.

        Equals ``apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)``. Names of
        special tokens in a message are part of the text, as in transformers.

        Args:
            messages: Mappings with a ``role``, mostly with a ``content``. Entries that are None count as missing.
            tools: JSON schemas of functions that the model may call.

        Raises:
            InputError: A message is malformed, the template refuses the messages, or the package has no template.
            PackageError: The template or ``tokenizer_config.json`` is damaged.
            EnvironmentMismatchError: jinja2 is not installed or too old.
        """
        source = self._choose(has_tools=tools is not None)
        chat = [_message(each) for each in _sequence("messages", messages)]
        if not chat:
            raise InputError("There are no messages.", MESSAGE_FORM)
        schemas = None if tools is None else [_plain(_mapping("tool", each)) for each in _sequence("tools", tools)]
        with required_extra("chat", "A chat template"):
            from liger_export.runtime.template_sandbox import TemplateError, TemplateSyntaxError, compile_template
        _check_jinja()
        try:
            template = compile_template(source)
        except TemplateSyntaxError as error:
            raise PackageError(
                f"The package's chat template is not valid ({error}).", "Correct it, and convert the checkpoint again."
            ) from error
        try:
            return template.render(
                messages=chat, tools=schemas, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except TemplateError as error:
            raise InputError(
                f"The chat template refuses the messages: {error}", "Change the messages to what the model supports."
            ) from error
        except Exception as error:  # of an expression in the template
            raise InputError(
                f"The chat template fails on these messages ({type(error).__name__}: {error}).", MESSAGE_FORM
            ) from error

    @property
    def exists(self) -> bool:
        """True if the package has a template. Raises PackageError if its files are damaged."""
        return "default" in self._templates

    @cached_property
    def _config(self) -> dict[str, Any]:
        return self._read_json("tokenizer_config.json")

    @cached_property
    def _templates(self) -> dict[str, str]:
        """Templates by name. Files replace those in ``tokenizer_config.json``."""
        names = {"default": "chat_template.jinja", "tool_use": TOOL_USE_TEMPLATE}
        paths = {name: self._directory / file for name, file in names.items()}
        files = {name: _read_text(path) for name, path in paths.items() if path.is_file()}
        if files:
            return files
        listed = self._config.get("chat_template")
        named: dict[Any, Any] = {} if listed is None else {"default": listed}
        if isinstance(listed, list):
            named = {each.get("name"): each.get("template") for each in listed if isinstance(each, dict)}
        if not all(isinstance(part, str) for entry in named.items() for part in entry):
            raise _damaged(self._directory / "tokenizer_config.json", "its chat_template is not text")
        return named

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        """Special tokens by the name that templates have for them."""
        values = self._config
        if "added_tokens_decoder" not in values:  # written by old versions of transformers
            values = {**values, **self._read_json("special_tokens_map.json")}
        tokens = {name: values.get(name) for name in SPECIAL_TOKENS}
        contents = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
        return {name: content for name, content in contents.items() if isinstance(content, str)}

    def _choose(self, *, has_tools: bool) -> str:
        templates = self._templates
        name = "tool_use" if has_tools and "tool_use" in templates else "default"
        if name not in templates:
            raise no_template()
        return templates[name]

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self._directory / name
        if not path.is_file():
            return {}
        try:
            values = read_json(path)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if not isinstance(values, dict):
            raise _damaged(path, "it is not a JSON object")
        return values


def no_template() -> InputError:
    """Return the error for a package without a chat template."""
    return InputError(
        "The package has no chat template.",
        "Use generate, or put the model's chat_template.jinja into the checkpoint and convert it again.",
    )


def _check_jinja() -> None:
    installed = version("jinja2")
    if Version(installed) < Version(OLDEST_JINJA):
        raise EnvironmentMismatchError(
            f"A chat template needs jinja2 {OLDEST_JINJA} or newer; {installed} is installed.",
            f"Run: {install_command('chat')}",
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: object) -> PackageError:
    return PackageError(f"{path} cannot be read ({reason}).", "Copy or convert the package again.")


def _sequence(name: str, value: object) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InputError(f"{name} is {value!r}.", f"Pass a list. {MESSAGE_FORM}")
    return value


def _mapping(kind: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"A {kind} is {value!r}.", "Pass a dictionary of lists, text and numbers.")
    return value


def _message(value: object) -> dict[str, Any]:
    """Return a message for a template, with its reasoning under each name that templates have for it."""
    message = {name: entry for name, entry in _mapping("message", value).items() if entry is not None}
    if not isinstance(message.get("role"), str):
        raise InputError(f"A message has no role: {value!r}.", MESSAGE_FORM)
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    plain: dict[str, Any] = _plain(message)
    return plain


def _plain(value: Any) -> Any:
    """Return a copy that consists of exact JSON types: a template could call the methods of anything else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    raise InputError(
        f"A message or tool contains {value!r}, a {type(value).__name__}.",
        "Pass dictionaries, lists, text and numbers.",
    )
