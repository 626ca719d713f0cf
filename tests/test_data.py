import codecs
import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors, trainers
from transformers import PreTrainedTokenizerFast

from liger_export.checkpoint import open_liger
from liger_export.data import TextEncoder, packed_blocks, read_documents, read_tokens, token_blocks
from liger_export.errors import DataError, InputError
from liger_export.evaluate import evaluate, open_model
from liger_export.finetune import FinetuneSettings, finetune
from tests.tiny import END_OF_TEXT, VOCABULARY, byte_tokenizer, edit_json

END, OTHER_END = 7, 8


def encoder(*, first: int | None = None, last: int | None = None, fast: bool = False) -> TextEncoder:
    """One token per byte, with tokens that the tokenizer adds before and after each text."""
    tokenizer = byte_tokenizer()
    tokens = {token: tokenizer.id_to_token(token) for token in (first, last) if token is not None}
    template = " ".join([*([tokens[first]] if first is not None else []), "$A"])
    template += f" {tokens[last]}" if last is not None else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, token) for token, name in tokens.items()]
    )
    wrapped: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer) if fast else tokenizer
    return TextEncoder(Path("model"), wrapped, VOCABULARY, (END, OTHER_END))


def write_lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ({}, "a / b"),
        ({"first": 5}, "5 a / 5 b"),  # BOS
        ({"first": END}, "/ a / b"),  # BOS and EOS are the same token
        ({"last": END}, "a / b /"),
        ({"first": 5, "last": OTHER_END}, "5 a 8 5 b 8"),
    ],
)
def test_one_end_token_stands_between_two_documents(
    tmp_path: Path, added: dict[str, int], expected: str, fast: bool
) -> None:
    text = write_lines(tmp_path / "text.jsonl", "a", "b")
    read = encoder(**added, fast=fast)
    [a], [b] = encoder().encode(["a", "b"])
    names = {"a": a, "b": b, "/": END}
    assert read_tokens(read, text) == [names.get(name) or int(name) for name in expected.split()]


def test_a_model_without_an_end_token_reads_the_documents_without_separation(tmp_path: Path) -> None:
    read = TextEncoder(Path("model"), byte_tokenizer(), VOCABULARY, ())
    assert len(read_tokens(read, write_lines(tmp_path / "text.jsonl", "aa", "bb"))) == 2 * 3


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A tokenizer whose tokens span words, so that a cut changes tokens far before it."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["?"], show_progress=False, max_token_length=24)
    random = Random(0)
    texts = ["".join(random.choices("aab  \n", k=300)) + "a" * random.randrange(40) for _ in range(40)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@settings(max_examples=60, deadline=None)
@given(text=st.text("aab \n1", min_size=1, max_size=60), times=st.integers(1, 300), count=st.integers(1, 200))
def test_the_start_of_a_text_has_the_tokens_of_the_whole(trained: Tokenizer, text: str, times: int, count: int) -> None:
    for tokenizer in (trained, byte_tokenizer()):
        read = TextEncoder(Path("model"), tokenizer, 400, (END,))
        whole = read.encode([text * times])[0]
        assert read.encode_start(text * times, count)[:count] == whole[:count]


class Counting:
    """A byte tokenizer that counts the characters it encodes."""

    def __init__(self) -> None:
        self.characters = 0

    def __call__(self, texts: list[str], verbose: bool) -> Any:
        self.characters += sum(map(len, texts))
        return SimpleNamespace(input_ids=[list(text.encode()) for text in texts])


@pytest.mark.parametrize("documents", [1, 100])
def test_only_the_start_of_a_long_text_is_encoded(tmp_path: Path, documents: int) -> None:
    write_lines(tmp_path / "text.jsonl", *["word " * (400_000 // documents)] * documents)
    tokenizer = Counting()
    read = TextEncoder(Path("model"), tokenizer, VOCABULARY, (END,))
    ids = read_tokens(read, tmp_path / "text.jsonl", 5000)
    assert tokenizer.characters < 200_000
    assert ids == read_tokens(read, tmp_path / "text.jsonl")[:5000]


def test_one_document_is_encoded_as_by_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one document")
    assert read_tokens(encoder(), tmp_path / "text.txt") == encoder().encode(["one document"])[0]


def test_a_base_a_checkpoint_and_a_package_separate_documents_by_the_same_token(
    liger_checkpoint: Path, package: Path, tmp_path: Path
) -> None:
    base = liger_checkpoint.with_name(liger_checkpoint.name + "-base")
    ends = {open_model(path).encoder.end_ids for path in (base, liger_checkpoint, package)}
    assert ends == {open_liger(liger_checkpoint).config.eos_token_ids} == {(0,)}


def test_blocks_are_the_concatenated_documents_cut_in_order(
    liger_checkpoint: Path, package: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("abcd" * 5)
    (tmp_path / "b.txt").write_text("x" * 11)
    read = open_model(liger_checkpoint).encoder
    blocks = token_blocks(read, tmp_path, 8)
    assert read.tokenizer.decode(blocks.flatten()) == f"{END_OF_TEXT}{'abcd' * 5}{END_OF_TEXT}{'x' * 10}"
    assert blocks.shape == (4, 8)
    assert token_blocks(open_model(package).encoder, tmp_path, 8).equal(blocks)
    assert token_blocks(read, tmp_path, 8, max_tokens=20).equal(blocks[:2])
    with pytest.raises(DataError, match="33 tokens"):
        token_blocks(read, tmp_path, 34)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), length=st.integers(2, 12), seed=st.integers(0, 99))
def test_packed_positions_count_from_the_start_of_each_document_and_block(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, seed: int
) -> None:
    random = Random(seed)
    texts = ["".join(random.choices("abc", k=count)) for count in lengths]
    data = write_lines(tmp_path_factory.mktemp("packed") / "data.jsonl", *texts)
    encoded = encoder()
    ids, positions = list[int](), list[int]()
    for text in texts:
        tokens = [*encoded.encode([text])[0], END]
        for offset, token in enumerate(tokens):
            at_block_start = len(ids) % length == 0
            positions.append(0 if at_block_start or offset == 0 else positions[-1] + 1)
            ids.append(token)
    whole = len(ids) // length * length
    if not whole:
        with pytest.raises(DataError, match=f"holds {len(ids)} tokens"):
            packed_blocks(encoded, data, length)
        return
    blocks, counted = packed_blocks(encoded, data, length)
    assert blocks.flatten().tolist() == ids[:whole]
    assert counted.flatten().tolist() == positions[:whole]


@pytest.mark.parametrize(("last", "ends"), [(None, [END]), (END, [END]), (OTHER_END, [OTHER_END])])
def test_a_packed_document_ends_with_one_end_token(last: int | None, ends: list[int], tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", "ab", "cd")
    encoded = encoder(last=last)
    blocks, positions = packed_blocks(encoded, data, 6)
    letters = [encoder().encode([text])[0] for text in ("ab", "cd")]
    assert blocks.tolist() == [[*letters[0], *ends, *letters[1], *ends]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2]]


def test_tokens_that_the_model_does_not_know_are_refused_wherever_text_is_read(
    checkpoint_copy: Path, tmp_path: Path
) -> None:
    tokenizer = json.loads((checkpoint_copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["\u0120\u0120"] = VOCABULARY
    tokenizer["model"]["merges"] = [["\u0120", "\u0120"]]
    edit_json(checkpoint_copy / "tokenizer.json", **tokenizer)
    (tmp_path / "text.txt").write_text("if x:\n    y\n" * 100)
    words = f"produces token {VOCABULARY}, but the model knows {VOCABULARY}"
    with pytest.raises(InputError, match=words):
        evaluate(checkpoint_copy, tmp_path / "text.txt", sequence_length=32)
    with pytest.raises(InputError, match=words):
        finetune(
            checkpoint_copy,
            tmp_path / "text.txt",
            tmp_path / "adapter",
            FinetuneSettings(sequence_length=32, max_steps=1),
        )
    assert not (tmp_path / "adapter").exists()


def test_documents_come_from_text_jsonl_json_and_directories(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", "a0", "", "a1")
    write_lines(tmp_path / "b.NDJSON", "b0", "b1")
    write_lines(tmp_path / "c.JSONL", "c0")
    write_lines(tmp_path / "d.json", "d0", "d1")
    (tmp_path / "e.json").write_text(json.dumps([{"text": "e0"}, {"text": "e1", "more": 1}], indent=1))
    (tmp_path / "f.py").write_text("f0")
    (tmp_path / "g.TXT").write_text("g0")
    expected = ["a0", "a1", "b0", "b1", "c0", "d0", "d1", "e0", "e1", "f0", "g0"]
    assert list(read_documents(tmp_path)) == expected
    assert [text for path in sorted(tmp_path.iterdir()) for text in read_documents(path)] == expected


def test_files_about_a_data_set_are_not_documents_of_its_directory(tmp_path: Path) -> None:
    about = ["README.md", "readme", "LICENSE", "License.txt", "dataset_info.json", "dataset_infos.json", "state.json"]
    for name in [*about, ".gitattributes", ".git/HEAD", "part/README.txt", "part/readable.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(read_documents(tmp_path)) == ["part/readable.txt"]
    assert list(read_documents(tmp_path / "README.md")) == ["README.md"]
    assert list(read_documents(tmp_path / ".gitattributes")) == [".gitattributes"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "array.json"])
def test_a_byte_order_mark_is_dropped(tmp_path: Path, name: str) -> None:
    content = {"a.txt": "one", "array.json": '[{"text": "one"}]'}.get(name, '{"text": "one"}\n')
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content.encode())
    assert list(read_documents(tmp_path / name)) == ["one"]


@given(texts=st.lists(st.text(min_size=1), min_size=1), is_escaped=st.booleans())
def test_json_restores_every_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str], is_escaped: bool) -> None:
    directory = tmp_path_factory.mktemp("texts")
    records = [{"text": text} for text in texts]
    array = json.dumps(records, ensure_ascii=is_escaped)
    lines = "\n".join(json.dumps(record, ensure_ascii=is_escaped) for record in records)
    for name, content in {"a.json": array, "b.json": lines, "c.jsonl": lines}.items():
        (directory / name).write_bytes(content.encode())
        assert list(read_documents(directory / name)) == texts


GOOD = '{"text": "good"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            GOOD * 9999 + "\n" + '{"a": 1, "b": 2}',
            r'a\.jsonl, line 10001, has no "text", only: a, b',
        ),
        ("a.jsonl", GOOD + "{}", 'line 2, has no "text", only: nothing'),
        ("a.jsonl", GOOD + "text", r"line 2, is not JSON \(Expecting value, column 1\)"),
        ("a.jsonl", GOOD + '{"text": "cut', r"line 2, is not JSON \(Unterminated string.*column 10\)"),
        ("a.jsonl", GOOD + '{"text": 5}', 'line 2, has a "text" that is not a string'),
        ("a.jsonl", GOOD + '["text"]', "line 2, is not a JSON object"),
        ("a.jsonl", GOOD + "[" * 100_000, "line 2, cannot be read as JSON"),
        ("a.jsonl", GOOD + '{"text": "\\ud800"}', r"line 2, contains the lone surrogate \\ud800"),
        ("a.jsonl", GOOD.encode() + b'{"text": "\xff"}', r"line 2, is not UTF-8 text \(byte 0xff\)"),
        ("a.json", "[" + GOOD + ',{"no": 1}]', 'record 2, has no "text"'),
        ("a.json", "[" + GOOD + ',{"text": "\\udfff"}]', r"record 2, contains the lone surrogate \\udfff"),
        ("a.json", "[\n" + GOOD + "oops]", r"line 3, is not JSON \(Expecting ',' delimiter, column 1\)"),
        ("a.json", '{\n  "text": "spread over lines"\n}', "line 1, is not JSON"),
        ("a.txt", b"one\ntwo \xff\xfe\xfd", r"a\.txt, line 2, is not UTF-8 text \(byte 0xff\)"),
        ("a.txt", "text".encode("utf-16"), "line 1, is not UTF-8 text"),
    ],
)
def test_invalid_data_is_refused_by_file_line_and_reason(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=words):
            list(read_documents(path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.parquet", r"a\.parquet is not a text file, by its suffix \.parquet.*jsonl"),
        ("b.ARROW", r"suffix \.arrow"),
        ("b.csv", r"suffix \.csv"),
        ("a.jsonl.gz", r"a\.jsonl\.gz is compressed.*Unpack"),
        ("a.txt.zst", "is compressed"),
    ],
)
def test_formats_that_are_not_text_are_refused_by_name_before_anything_is_read(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "a.jsonl").write_text("this would be refused, too")
    (tmp_path / name).write_text("text")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=words):
            next(read_documents(path))


@pytest.mark.parametrize("name", ["data", "data.log"])
def test_a_file_of_unknown_format_is_read_only_if_it_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text")
    assert list(read_documents(tmp_path / name)) == ["text"]
    with pytest.raises(DataError, match=rf"{name} has an unknown suffix.*pass this file alone"):
        next(read_documents(tmp_path))


def test_missing_data_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        list(read_documents(tmp_path / "nowhere"))
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(DataError, match="holds no documents"):
        list(read_documents(tmp_path))
