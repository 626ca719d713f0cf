import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from liger_export.runtime.text import TextStream
from tests.tiny import END_OF_TEXT, byte_tokenizer

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


@pytest.mark.parametrize("stop", [(), ("\n\n",), ("\n" + END_OF_TEXT,)])
def test_nothing_is_held_back_needlessly(stop: tuple[str, ...]) -> None:
    pieces, _ = stream("abc", *stop)
    assert pieces == ["a", "b", "c", ""]


WORDS = ["\u2581a", "\u2581hello", "b", "\u2581", "\u00e9", "\ufffd", ",", "##b", "##", "world", "."]
SPECIAL = ["<unk>", "<s>", "</s>"]


def fallback_vocabulary() -> list[str]:
    return [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]


def llama_2() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(fallback_vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces, strip = decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([(token, -1.0) for token in fallback_vocabulary()], 0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


TOKENIZERS = {"bytes": TOKENIZER, "llama-2": llama_2(), "unigram": unigram(), "word-piece": word_piece()}
BYTE_A, BYTE_C3, BYTE_A9 = (3 + byte for byte in b"A\xc3\xa9")


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_streaming_any_tokens_equals_decoding_them_at_once(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1) | st.integers(max(size - 12, 0), size - 1), max_size=20))
    split = data.draw(st.integers(0, len(ids)))
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    assert isinstance(streamed(tokenizer, ids[split:], ids[:split]), str)


def streamed(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> str:
    decoder = TextStream(tokenizer, context or [])
    return "".join([*map(decoder.push, ids), decoder.finish()])


@given(st.text(max_size=12))
@example("\u00e9")
def test_a_text_continues_in_the_middle_of_its_context(text: str) -> None:
    ids = TOKENIZER.encode("x\u20ac" + text, add_special_tokens=False).ids
    assert streamed(TOKENIZER, ids[4:], ids[:4]) == text
    assert streamed(TOKENIZER, ids[3:], ids[:3]) == "\u20ac" + text


def test_an_incomplete_character_of_byte_tokens_becomes_replacement_characters() -> None:
    tokenizer, word = TOKENIZERS["llama-2"], 3 + 256 + 2
    decoder = TextStream(tokenizer, [])
    assert [decoder.push(token) for token in (BYTE_A, BYTE_C3, word)] == ["", "", "\ufffd\ufffdb"]
    assert streamed(tokenizer, [BYTE_A, BYTE_C3, BYTE_A9, word]) == "A\u00e9b"
    assert streamed(tokenizer, [word, BYTE_C3]) == "b\ufffd"


def test_a_continuation_keeps_the_space_before_its_first_word() -> None:
    tokenizer, hello = TOKENIZERS["llama-2"], 3 + 256 + 1
    assert streamed(tokenizer, [hello]) == "hello"
    assert streamed(tokenizer, [hello], [hello]) == " hello"
    assert streamed(tokenizer, [1, hello], [hello, 2]) == " hello"


END, A, B, NEWLINE = TOKENIZER.encode(END_OF_TEXT + "ab\n", add_special_tokens=False).ids


def stopped_text(stop: list[str], ids: list[int], tokenizer: Tokenizer = TOKENIZER) -> tuple[str, int]:
    """The text before a stop string, and the number of tokens up to it."""
    decoder, text = TextStream(tokenizer, [], tuple(stop)), ""
    for count, token in enumerate(ids, 1):
        text += decoder.push(token)
        if decoder.stopped:
            return text + decoder.finish(), count
    return text + decoder.finish(), -1


def test_a_special_token_stops_the_text_although_it_has_none() -> None:
    assert stopped_text([END_OF_TEXT], [A, B, END, A]) == ("ab", 3)
    assert stopped_text(["x", END_OF_TEXT], [END, A]) == ("", 1)
    assert stopped_text(["x"], [A, END, B]) == ("ab", -1)


def test_the_name_of_a_special_token_stops_the_text_too() -> None:
    ids = [A, *(ord(character) - 32 for character in END_OF_TEXT), B]
    assert TOKENIZER.decode(ids) == "a" + END_OF_TEXT + "b"
    assert stopped_text([END_OF_TEXT], ids) == ("a", len(ids) - 1)


def test_a_stop_string_may_have_text_around_a_special_token() -> None:
    stop = ["\n" + END_OF_TEXT, END_OF_TEXT + "b"]
    assert stopped_text(stop, [A, NEWLINE, END, A]) == ("a", 3)
    assert stopped_text(stop, [A, END, A, END, B]) == ("aa", 5)
    assert stopped_text(stop, [A, END, A, END]) == ("aa", -1)  # none of it is part of the text


def test_a_special_token_ends_a_character_that_is_incomplete() -> None:
    assert stopped_text(["</s>"], [BYTE_A, BYTE_C3, 2, BYTE_A9], TOKENIZERS["llama-2"]) == ("\ufffd\ufffd", 3)
    assert stopped_text(["A</s>"], [BYTE_A, 2], TOKENIZERS["llama-2"]) == ("", 2)
