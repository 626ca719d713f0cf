"""A prompt's token ids, and their checks."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from liger_export.errors import InputError
from liger_export.runtime.executor import Tokens

__all__ = ["PromptEncoder", "checked_rows", "checked_tokens"]

ENCODE = "Encode text with the package's own tokenizer."

LARGEST_ID = 1 << 24


class PromptEncoder:
    """Encodes prompts with a package's tokenizer.

    The tokenizer parses special tokens in a text. A copy that reads them as text is made when a prompt first needs it:
    that takes about as long as loading the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self._unparsing: Tokenizer | None = None

    def encode(self, text: str, *, add_special_tokens: bool, parse_special_tokens: bool) -> list[int]:
        """Encode a prompt.

        Args:
            text: The prompt.
            add_special_tokens: Add the tokens that the tokenizer puts before a text, unless the prompt starts with
                them. Tokens that it puts after a text are never added, because the text goes on.
            parse_special_tokens: Read special tokens that are written in the text; otherwise they stay text.

        Raises:
            InputError: The prompt is not valid Unicode, or the tokenizer cannot encode a special token as text.
        """
        if any("\ud800" <= character <= "\udfff" for character in text):  # undecodable command-line arguments
            raise InputError("The prompt is not valid Unicode text.", "Pass it as UTF-8.")
        body = _encode(self._tokenizer, text)
        if not parse_special_tokens and not self._special.keys().isdisjoint(body):
            body = self._encode_as_text(text)
        if not add_special_tokens:
            return body
        probe = text if body else "a"  # an empty text does not separate prefix and suffix
        whole = self._tokenizer.encode(probe, add_special_tokens=True)
        count = next((at for at, is_added in enumerate(whole.special_tokens_mask) if not is_added), 0)
        prefix = list(whole.ids[:count])
        return body if body[:count] == prefix else prefix + body

    def _encode_as_text(self, text: str) -> list[int]:
        """Encode a text without parsing special tokens."""
        if self._unparsing is None:
            largest = max(self._tokenizer.get_vocab().values())
            if largest > LARGEST_ID:  # writing the tokenizer, and so copying it, takes time for every id up to this one
                raise InputError(f"The tokenizer has a token with id {largest}.", "Restore tokenizer.json.")
            # The setting belongs to a tokenizer, which other threads and the session's user share.
            copy = Tokenizer.from_str(self._tokenizer.to_str())
            copy.encode_special_tokens = True
            self._unparsing = copy
        ids = _encode(self._unparsing, text)
        parsed = [content for token_id in ids if (content := self._special.get(token_id, "")) and content in text]
        if parsed:  # its vocabulary also lists special tokens as pieces of text
            raise InputError(
                f"The tokenizer cannot encode {parsed[0]!r} as text.",
                "Pass parse_special_tokens=True (--parse-special-tokens), or a prompt without it.",
            )
        return ids


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def checked_tokens(token_ids: Sequence[int] | Tokens, vocab_size: int) -> Tokens:
    """Return token ids as int64 [T]. Raises InputError if they are malformed or outside the vocabulary."""
    try:
        tokens = np.asarray(token_ids)
    except ValueError:  # lists of different lengths
        raise _not_token_ids(token_ids) from None
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise _not_token_ids(token_ids)
    check_vocabulary(tokens, vocab_size)
    return tokens.astype(np.int64, copy=False)


def checked_rows(token_ids: Tokens, vocab_size: int) -> Tokens:
    """Return a batch of token ids as int64 [B, T].

    Raises:
        InputError: It is not an array of integers, is empty, or has an id outside the vocabulary.
    """
    if not isinstance(token_ids, np.ndarray) or token_ids.ndim != 2 or token_ids.dtype.kind not in "iu":
        raise InputError(f"{token_ids!r} is not an array [B, T] of token ids.", ENCODE)
    if not token_ids.size:
        raise InputError("There are no tokens to read.", "Pass at least one token.")
    check_vocabulary(token_ids, vocab_size)
    return token_ids.astype(np.int64, copy=False)


def check_vocabulary(tokens: Tokens, vocab_size: int) -> None:
    """Raise InputError if a token is outside the vocabulary."""
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise InputError(f"Token id {outside[0]} is outside the vocabulary of {vocab_size} entries.", ENCODE)


def _not_token_ids(value: object) -> InputError:
    return InputError(f"{value!r} is not a sequence of token ids.", ENCODE)
