"""Tokenizers of GGUF files. The reference is llama.cpp.

``llama_cpp_tokens.json`` has the tokens that llama.cpp v0.5.0 (through node-llama-cpp 3.22.1) gives for each
text with the file that ``write_gguf`` writes. Tokens are separated by spaces, which no token contains.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from liger_export.checkpoint.gguf import GgufModel
from liger_export.errors import CheckpointError
from tests.gguf_files import BYTE_LEVEL_TOKENS, SENTENCEPIECE_TOKENS, write_gguf
from tests.tiny import END_OF_TEXT, write_base

EXPECTED: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("llama_cpp_tokens.json").read_text())
VOCABULARY = 320


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), vocab_size=VOCABULARY, num_hidden_layers=1)


@pytest.mark.parametrize("rule", EXPECTED)
def test_tokens_are_those_of_llama_cpp(rule: str, base: Path, tmp_path: Path) -> None:
    tokenizer = GgufModel.open(write_gguf(tmp_path / "base.gguf", base, tokenizer=rule)).tokenizer.tokenizer
    for text, tokens in EXPECTED[rule].items():
        found = tokenizer.encode(text, add_special_tokens=False).ids
        assert " ".join(map(str, map(tokenizer.id_to_token, found))) == tokens


def test_rules_differ_where_llama_cpp_says_so() -> None:
    split = {rule: tokens["123  1 34"] for rule, tokens in EXPECTED.items()}
    assert split["llama-bpe"].startswith("123 ")  # up to three digits
    assert split["smollm"].startswith("1 2 3 ĠĠ ")  # single digits, after all spaces
    assert split["qwen2"].startswith("1 2 3 Ġ Ġ ")  # single digits, after one space


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", backbone="qwen2", vocab_size=VOCABULARY)
    path = write_gguf(tmp_path / "base.gguf", base, tokenizer="qwen2")
    ours, theirs = (
        GgufModel.open(path).tokenizer.tokenizer,
        AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name),
    )
    for text in EXPECTED["qwen2"]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("rule", EXPECTED)
def test_decoding_gives_the_text_back(rule: str, base: Path, tmp_path: Path) -> None:
    tokenizer = GgufModel.open(write_gguf(tmp_path / "base.gguf", base, tokenizer=rule)).tokenizer.tokenizer
    for text in ("hello the 1234", "  a\r\n\té日😀 ", "e\u0301 \x00"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("tokenizer", "keys", "first", "last"),
    [
        ("smollm", {"tokenizer.ggml.add_bos_token": None}, [], []),  # llama.cpp's defaults
        ("qwen2", {"tokenizer.ggml.add_bos_token": None}, [], []),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": None}, [0], []),
        ("sentencepiece", {}, [1], []),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, [], []),  # or what the file says
        ("sentencepiece", {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}, [], [2]),
    ],
)
def test_tokens_at_the_start_and_end_of_a_text(
    tokenizer: str, keys: dict[str, Any], first: list[int], last: list[int], base: Path, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "base.gguf", base, tokenizer=tokenizer, keys=keys)
    built = GgufModel.open(path).tokenizer.tokenizer
    plain = built.encode("hello", add_special_tokens=False).ids
    assert built.encode("hello").ids == [*first, *plain, *last]


def test_the_first_token_of_a_text_may_have_any_name(base: Path, tmp_path: Path) -> None:
    tokens = ["$A:1", *BYTE_LEVEL_TOKENS[1:], *(f"[PAD{i}]" for i in range(len(BYTE_LEVEL_TOKENS), VOCABULARY))]
    path = write_gguf(tmp_path / "base.gguf", base, keys={"tokenizer.ggml.tokens": tokens})
    assert GgufModel.open(path).tokenizer.tokenizer.encode("12").tokens == ["$A:1", "1", "2"]


def test_control_tokens_are_special_and_user_defined_tokens_are_text(base: Path, tmp_path: Path) -> None:
    tokenizer = GgufModel.open(write_gguf(tmp_path / "base.gguf", base)).tokenizer.tokenizer
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {END_OF_TEXT: True, "<mark>": False}
    assert tokenizer.decode(tokenizer.encode(f"a{END_OF_TEXT}<mark>").ids) == "a<mark>"


def test_a_control_token_that_ends_a_turn_ends_a_text_even_if_no_key_names_it(base: Path, tmp_path: Path) -> None:
    tokens = [*BYTE_LEVEL_TOKENS, *(f"[PAD{index}]" for index in range(len(BYTE_LEVEL_TOKENS), VOCABULARY))]
    tokens[-1] = "<|im_end|>"
    for kind, ends in ((3, (0, VOCABULARY - 1)), (1, (0,))):
        keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3, *[1] * (VOCABULARY - 2), kind]}
        assert GgufModel.open(write_gguf(tmp_path / "base.gguf", base, keys=keys)).tokenizer.eos_token_ids == ends


def test_without_a_space_prefix_a_text_starts_as_it_is(base: Path, tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.add_space_prefix": False}
    path = write_gguf(tmp_path / "base.gguf", base, tokenizer="sentencepiece", keys=keys)
    tokenizer = GgufModel.open(path).tokenizer.tokenizer
    assert tokenizer.encode("hello the", add_special_tokens=False).tokens == ["hello", "▁the"]
    assert tokenizer.decode(tokenizer.encode(" hello").ids) == " hello"


SCORES = [0.0] * VOCABULARY
TOKENS = [*SENTENCEPIECE_TOKENS, *(f"[PAD{index}]" for index in range(len(SENTENCEPIECE_TOKENS), VOCABULARY))]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tokenizer.ggml.scores": SCORES[1:]}, "320 tokens and 319 scores"),
        ({"tokenizer.ggml.scores": [float("nan"), *SCORES[1:]]}, "invalid tokenizer.ggml.scores"),
        ({"tokenizer.ggml.scores": None}, "no tokenizer.ggml.scores"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:3], "x", *TOKENS[4:]]}, "two of the same text"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:3], "xxx", *TOKENS[4:]]}, "lacks tokens for single bytes"),
        ({"tokenizer.ggml.tokens": ["", *TOKENS[1:]]}, "has an empty token"),
        ({"tokenizer.ggml.unknown_token_id": 320}, "for unknown text"),
        ({"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": None}, "names none"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "invalid tokenizer.ggml.add_bos_token: 'yes'"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(
    keys: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "base.gguf", base, tokenizer="sentencepiece", keys=keys)
    with pytest.raises(CheckpointError, match=words) as caught:
        GgufModel.open(path)
    assert str(path) in caught.value.cause
