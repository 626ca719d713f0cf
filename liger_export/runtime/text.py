"""Streaming text from token ids, and stop strings."""

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

__all__ = ["TextStream"]


class TextStream:
    """Decodes tokens one by one and holds back text that may turn out to be a stop string.

    Attributes:
        stopped: True once a stop string has appeared. The text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int], stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
        self._stop = tuple(string for string in stop if string)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain, which may be empty."""
        self._held += self._stream.step(self._tokenizer, token_id) or ""
        found = [at for string in self._stop if (at := self._held.find(string)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, string) for string in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def finish(self) -> str:
        """Return the text still held back. Call it after the last token."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
