"""Streaming text from token ids, and stop strings."""

import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer

__all__ = ["TextStream"]

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
REPLACEMENT = "\ufffd"
FIRST_MARK, LAST_MARK = 0xD800, 0xDFFF  # surrogates, which text in UTF-8 cannot contain
NO_MARKS = dict.fromkeys(range(FIRST_MARK, LAST_MARK + 1))


class _Decoder:
    """Decodes tokens one by one. The pieces join to the text of all tokens at once; special tokens have no text.

    Text is held back while another token may change it: an incomplete UTF-8 character, and a run of byte-fallback
    tokens, which decodes to U+FFFD as a whole if one of its bytes is invalid. ``tokenizers.DecodeStream`` does not hold
    back such a run and raises an exception.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._context = self._without_special(context)  # decoders treat the first token of a text differently
        self._context_text = self._decode(self._context)
        self._fresh: list[int] = []

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain."""
        self._fresh += self._without_special([token_id])
        if not self._fresh or BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(self._fresh[-1]) or ""):
            return ""
        text = self._text()
        return "" if not text or text.endswith(REPLACEMENT) else self._take(text)

    def finish(self) -> str:
        """Return the text of the tokens held back, in which incomplete characters are U+FFFD."""
        return self._take(self._text()) if self._fresh else ""

    def _take(self, text: str) -> str:
        """Make the fresh tokens, whose text is certain, the context of the next ones."""
        self._context, self._fresh = self._fresh, []
        self._context_text = self._decode(self._context)
        return text

    def _text(self) -> str:
        """Return the text that the fresh tokens add to the context. They may complete a character of it."""
        text = self._decode(self._context + self._fresh)
        return text[_common_length(self._context_text, text) :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _without_special(self, token_ids: Iterable[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id not in self._special]


class TextStream:
    """Decodes tokens one by one and holds back text that may turn out to be a stop string.

    Special tokens have no text. Those in stop strings are represented by marks, which are removed in the end:
    characters that no decoded text contains.

    Attributes:
        stopped: True once a stop string has appeared. The text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], stop: tuple[str, ...] = ()) -> None:
        """Start a text.

        Args:
            tokenizer: Decodes the tokens.
            context: Ids of the tokens before the text.
            stop: Strings to stop at, not empty. A special token in them matches that token and its name.
        """
        self._decoder = _Decoder(tokenizer, context)
        names = _special_tokens_in(stop, tokenizer)
        self._marks = {token_id: chr(FIRST_MARK + index) for index, token_id in enumerate(names)}
        self._stop = {*stop, *(_marked(string, names, self._marks) for string in stop)}
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain, which may be empty."""
        if token_id in self._marks:
            self._held += self._decoder.finish() + self._marks[token_id]
        else:
            self._held += self._decoder.push(token_id)
        return self._release()

    def finish(self) -> str:
        """Return the text still held back. Call it after the last token."""
        if not self.stopped:
            self._held += self._decoder.finish()
        text = self._release()
        if not self.stopped:
            text, self._held = text + self._held.translate(NO_MARKS), ""
        return text

    def _release(self) -> str:
        """Return the held text up to a stop string, or up to what may become one."""
        found = [at for string in self._stop if (at := self._held.find(string)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text.translate(NO_MARKS)
        keep = max((_overlap(self._held, string) for string in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text.translate(NO_MARKS)


def _special_tokens_in(strings: Iterable[str], tokenizer: Tokenizer) -> dict[int, str]:
    """Return the special tokens that are written in any of the strings, the longest name first."""
    added = tokenizer.get_added_tokens_decoder().items()
    names = {token_id: token.content for token_id, token in added if token.special and token.content}
    found = {token_id: name for token_id, name in names.items() if any(name in string for string in strings)}
    return dict(sorted(found.items(), key=lambda item: len(item[1]), reverse=True))


def _marked(string: str, names: Mapping[int, str], marks: Mapping[int, str]) -> str:
    """Replace the special tokens in a string by their marks."""
    for token_id, name in names.items():
        string = string.replace(name, marks[token_id])
    return string


def _common_length(text: str, other: str) -> int:
    """Return the length of the longest common prefix."""
    if other.startswith(text):
        return len(text)
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (one, two) in pairs if one != two), len(other))


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
