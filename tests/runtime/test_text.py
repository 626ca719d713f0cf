import pytest
from hypothesis import given
from hypothesis import strategies as st

from liger_export.runtime.text import TextStream
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def stream(text: str, *stop: str) -> tuple[list[str], bool]:
    decoder = TextStream(TOKENIZER, [], stop)
    pieces = []
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        pieces.append(decoder.push(token))
        if decoder.stopped:
            return pieces, True
    return [*pieces, decoder.finish()], False


@given(st.text(max_size=40))
def test_pieces_join_to_the_text(text: str) -> None:
    pieces, stopped = stream(text, "never in it: \0\0\0")
    assert "".join(pieces) == text
    assert not stopped


def test_a_character_of_several_tokens_is_not_split() -> None:
    pieces, _ = stream("aé€")
    assert [piece for piece in pieces if piece] == ["a", "é", "€"]


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4))
def test_text_ends_before_the_stop_string(text: str, stop: str) -> None:
    pieces, stopped = stream(text, stop)
    assert "".join(pieces) == text.split(stop)[0]
    assert stopped == (stop in text)


def test_the_earliest_stop_string_ends_the_text() -> None:
    assert stream("one two three", "three", "two") == (list("one ") + [""] * 3, True)


@pytest.mark.parametrize("stop", ["", "\n\n"])
def test_nothing_is_held_back_needlessly(stop: str) -> None:
    pieces, _ = stream("abc", stop)
    assert pieces == ["a", "b", "c", ""]
