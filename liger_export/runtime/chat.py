"""Going to a conversation's prompt without reading again what a session has read."""

from dataclasses import dataclass

from liger_export.runtime.executor import Tokens
from liger_export.runtime.record import TextRecord, starts_with
from liger_export.runtime.saved_state import SavedState

__all__ = ["Turn", "rewind"]


@dataclass(frozen=True, slots=True)
class Turn:
    """The last prompt that ``Session.chat`` read.

    Attributes:
        prompt_tokens: Number of tokens in the prompt.
        read_tokens: Number of them that were read for it. The others had been read before.
        end: State at the end of the prompt, before the answer.
    """

    prompt_tokens: int
    read_tokens: int
    end: SavedState


def rewind(text: TextRecord, prompt: Tokens, last: Turn | None, shipped: SavedState | None = None) -> Tokens:
    """Go to the longest text at hand that the prompt starts with, and return the rest of the prompt.

    That is the present text, or else the prompt of the ``last`` turn, or else the text of the ``shipped`` state, or
    else the empty text. The pending token is
    dropped: if it is in the prompt, it is in the rest. Without a rest, the text has a prediction.
    """
    text.pending = []
    is_usable = text.prediction is not None or text.executor.position < len(prompt)
    if not (is_usable and text.starts(prompt)):
        if last is not None and starts_with(prompt, last.end.position, last.end.digest):
            text.load(last.end)
        else:
            text.clear()
    is_empty = text.executor.position == 0
    if is_empty and shipped is not None and starts_with(prompt, shipped.position, shipped.digest):
        text.load(shipped)
    return prompt[text.executor.position :]
