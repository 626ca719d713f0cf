"""Continuations of texts, from predictions that no graph has computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from liger_export.errors import InputError
from liger_export.runtime.executor import Logits
from liger_export.runtime.generation import Generation, GenerationSettings
from liger_export.runtime.pieces import Piece
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


@dataclass
class Fixed:
    """Predicts the same logits again and again."""

    logits: Logits

    def last_logits(self) -> Logits:
        return self.logits

    def argmax(self) -> int | None:
        return int(self.logits.argmax())

    def top_logits(self, temperature: float) -> TopLogits | None:
        return None


def ending_in(token: int) -> Fixed:
    """The end of the text is most likely, then ``token``, then token 7."""
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[[END, token, 7]] = 9, 8, 7
    return Fixed(logits)


def pieces_of(running: Generation, prediction: Fixed) -> list[Piece]:
    pieces = []
    while not running.finished:
        pieces.append(running.advance(prediction)[1])
    return [piece for piece in pieces if piece is not None]


def test_before_min_tokens_no_end_is_chosen() -> None:
    running = generation(min_tokens=3, stop_token_ids=(66,))
    assert pieces_of(running, ending_in(66))[-1].finish_reason == "stop"
    running = generation(min_tokens=3, stop_token_ids=(66,))
    tokens = [running.advance(ending_in(66))[0] for _ in range(4)]
    assert tokens == [7, 7, 7, None]


def test_a_stop_token_ends_the_text_and_is_not_part_of_it() -> None:
    prediction = ending_in(66)
    prediction.logits[66] = 10
    (piece,) = pieces_of(generation(stop_token_ids=[66]), prediction)
    assert (piece, piece.token_ids, piece.finish_reason) == ("", (), "stop")


def test_with_ignore_eos_an_end_of_text_token_is_a_token_without_text() -> None:
    (piece,) = pieces_of(generation(ignore_eos=True, max_new_tokens=2), ending_in(66))
    assert (piece, piece.token_ids, piece.finish_reason) == ("", (END, END), "length")


def test_tokens_without_text_are_in_the_next_piece() -> None:
    first, second = TOKENIZER.encode("é", add_special_tokens=False).ids
    running = generation(max_new_tokens=2)
    assert running.advance(Fixed(np.eye(VOCAB, dtype=np.float32)[first])) == (first, None)
    token, piece = running.advance(Fixed(np.eye(VOCAB, dtype=np.float32)[second]))
    assert piece is not None
    assert (token, piece, piece.token_ids) == (second, "é", (first, second))


@given(arrays(np.float32, VOCAB, elements=st.floats(-30, 30, width=32)), st.integers(0, 20))
def test_logprobs_are_those_of_all_logits_before_penalties(logits: Logits, count: int) -> None:
    sampling = Sampling(temperature=0.5, top_k=2, logit_bias={5: 90.0}, seed=0)
    running = generation(max_new_tokens=1, top_logprobs=count, sampling=sampling, ignore_eos=True)
    _, piece = running.advance(Fixed(logits))
    assert piece is not None
    (token,) = piece.tokens
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.sum(np.exp(wide)))
    assert token.logprob == pytest.approx(expected[token.id], abs=1e-9)
    best = sorted(range(VOCAB), key=lambda each: (-logits[each], each))[:count]
    assert [each for each, _ in token.top] == best
    assert [number for _, number in token.top] == pytest.approx(expected[best].tolist(), abs=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 9, "max_new_tokens": 4}, "min_tokens is 9, and max_new_tokens only 4"),
        ({"top_logprobs": 1.5}, "top_logprobs is 1.5"),
        ({"stop_token_ids": ["a"]}, "A stop token is 'a'"),
        ({"stop_token_ids": 5}, "stop_token_ids is 5"),
        ({"stop_token_ids": [VOCAB]}, f"stop token {VOCAB} is outside the vocabulary"),
    ],
)
def test_a_setting_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generation(**values)
