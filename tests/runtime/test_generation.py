"""Continuations of texts, from predictions that no graph has computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from liger_export.errors import InputError
from liger_export.runtime.executor import Logits
from liger_export.runtime.generation import Generation, GenerationSettings
from liger_export.runtime.sampling import Sampling
from liger_export.runtime.top_logits import TopLogits
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()
END = 0


@dataclass
class Scripted:
    """Predicts the tokens of a text one after the other, then the end of the text."""

    text: str
    computes_argmax: bool = True
    at: int = 0

    def _token(self) -> int:
        tokens = [*TOKENIZER.encode(self.text, add_special_tokens=False).ids, END]
        self.at += 1
        return int(tokens[self.at - 1])

    def last_logits(self) -> Logits:
        assert not self.computes_argmax, "all logits were read"
        return np.eye(VOCAB, dtype=np.float32)[self._token()]

    def argmax(self) -> int | None:
        return self._token() if self.computes_argmax else None

    def top_logits(self, temperature: float) -> TopLogits | None:
        return None


def generation(**settings: object) -> Generation:
    seen = np.zeros(VOCAB, dtype=np.bool_)
    return Generation(GenerationSettings(**settings), TOKENIZER, [], end_ids=[END], seen=seen)  # type: ignore[arg-type]


def text_of(running: Generation, prediction: Scripted) -> tuple[str, list[int | None]]:
    pieces, tokens = [], []
    while not running.finished:
        token, piece = running.advance(prediction)
        tokens.append(token)
        pieces.append(piece or "")
    return "".join(pieces), tokens


@pytest.mark.parametrize("computes_argmax", [True, False])
def test_it_ends_at_an_end_of_text_token(computes_argmax: bool) -> None:
    text, tokens = text_of(generation(), Scripted("abc", computes_argmax))
    assert text == "abc"
    assert tokens == [*TOKENIZER.encode("abc", add_special_tokens=False).ids, None]


def test_it_ends_at_the_limit_and_yields_what_was_held_back() -> None:
    text, tokens = text_of(generation(max_new_tokens=4, stop=("def",)), Scripted("abcde"))
    assert (text, len(tokens)) == ("abcd", 4)
    assert generation(max_new_tokens=0).finished


def test_it_ends_before_a_stop_string() -> None:
    text, tokens = text_of(generation(stop=("cd",)), Scripted("abcde"))
    assert (text, len(tokens)) == ("ab", 4)


def test_several_continuations_advance_in_turn() -> None:
    running = [(generation(), Scripted(text)) for text in ("first", "the second")]
    texts = ["", ""]
    while any(not each.finished for each, _ in running):
        for row, (each, prediction) in enumerate(running):
            if not each.finished:
                texts[row] += each.advance(prediction)[1] or ""
    assert texts == ["first", "the second"]


@pytest.mark.parametrize("limit", [-1, 1.5, "3"])
def test_a_limit_that_is_no_number_of_tokens_is_refused(limit: Any) -> None:
    with pytest.raises(InputError, match=rf"max_new_tokens is {limit!r}.*an integer, 0 or more"):
        GenerationSettings(max_new_tokens=limit)


@pytest.mark.parametrize("string", ["", 1, None, b"a"])
def test_a_stop_string_that_is_empty_or_not_text_is_refused(string: Any) -> None:
    with pytest.raises(InputError, match=r"stop string is .*at least one character"):
        GenerationSettings(stop=("a", string))
    with pytest.raises(InputError, match="not valid Unicode"):
        GenerationSettings(stop=("\udcff",))


def test_it_requests_top_logits_only_if_they_can_decide() -> None:
    assert generation().top_logits_temperature == 0
    assert generation(sampling=Sampling(temperature=0.7)).top_logits_temperature == 0.7
