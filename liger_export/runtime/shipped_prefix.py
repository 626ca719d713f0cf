"""The state after a system prompt, which a package can ship."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from liger_export.errors import InputError, PackageError
from liger_export.package import PREFIX_FILE, Manifest
from liger_export.runtime.loadable import require_loadable
from liger_export.runtime.prompt import checked_tokens
from liger_export.runtime.saved_state import SavedState
from liger_export.runtime.state_buffers import require_state

if TYPE_CHECKING:
    from liger_export.runtime.session import Session

__all__ = ["ShippedPrefix", "prefix_tokens", "read_prefix", "write_prefix"]

Each = TypeVar("Each", str, list[int])
TEXT = "text"  # name of the tensor with the tokens
PROBES = ("a", "Zebra", "1", "\n", " b", "é", "(")  # first messages of a user, which start in different ways


@dataclass(frozen=True, slots=True)
class ShippedPrefix:
    """A text and the state after it.

    Attributes:
        tokens: The text.
        state: The state after it, with the logits of the next token. Its arrays must not be changed.
    """

    tokens: tuple[int, ...]
    state: SavedState


def prefix_tokens(session: "Session", text: str) -> list[int]:
    """Return the tokens that every conversation with a system prompt starts with.

    Without a chat template, they are those of the text itself, as ``generate`` reads it.

    Raises:
        InputError: The chat template has no place for a system prompt at the start, or there are no tokens.
    """
    template = session.chat_template
    if template is None or not template.exists:
        tokens = session.encode(text, parse_special_tokens=True)
    else:
        system = {"role": "system", "content": text}
        prompts = [template.render([system, {"role": "user", "content": probe}]) for probe in PROBES]
        if text.strip() not in _common(prompts):
            raise InputError(
                "The chat template does not put the system prompt, as it is, before the first message.",
                "Use a model whose template does, or omit --prefix.",
            )
        encoded = [session.encode(each, add_special_tokens=False, parse_special_tokens=True) for each in prompts]
        tokens = list(_common(encoded))
    if not tokens:
        raise InputError("The prefix has no tokens.", "Pass a file with text.")
    return tokens


def write_prefix(path: Path, tokens: Sequence[int], state: SavedState) -> None:
    """Write the state after a text. Raises OutputError."""
    text = np.array(tokens, dtype=np.int32)
    replace(state, random=None, tensors={**state.tensors, TEXT: text}).save(path)


def read_prefix(directory: Path, manifest: Manifest) -> ShippedPrefix | None:
    """Read the state that a package ships, if it does. Raises PackageError if it is not one of this package."""
    if manifest.prefix is None:
        return None
    path = directory / PREFIX_FILE
    try:
        state = SavedState.read(path)
        text = state.tensors.pop(TEXT, None)
        if text is None or state.model is None or state.logits is None or state.pending:
            raise InputError("It is another kind of state.", "Convert the package again.")
        tokens = checked_tokens(text, manifest.model_config.vocab_size).tolist()
        require_loadable(state, manifest)
        require_state(manifest.state, state.position, state.tensors)
        if not len(tokens) == state.position == manifest.prefix["tokens"]:
            raise InputError("It is the state after another number of tokens.", "Convert the package again.")
    except InputError as error:
        raise PackageError(f"{path} cannot be used: {error.cause}", "Copy or convert the package again.") from error
    return ShippedPrefix(tuple(tokens), state)


def _common(texts: Sequence[Each]) -> Each:
    """Return what all of the texts start with."""
    length = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*texts, strict=False)))
    return texts[0][:length]
