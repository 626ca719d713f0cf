from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from liger_export.data import read_documents, token_blocks
from liger_export.errors import DataError
from liger_export.runtime import load
from tests.tiny import END_OF_TEXT


def test_blocks_are_the_concatenated_documents_cut_in_order(
    liger_checkpoint: Path, package: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("abcd" * 5)
    (tmp_path / "b.txt").write_text("x" * 11)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(liger_checkpoint)
    blocks = token_blocks(tokenizer, tmp_path, 8)
    assert tokenizer.decode(blocks.flatten()) == f"{END_OF_TEXT}{'abcd' * 5}{END_OF_TEXT}{'x' * 10}"
    assert blocks.shape == (4, 8)
    assert token_blocks(load(package).tokenizer, tmp_path, 8).equal(blocks)
    assert token_blocks(tokenizer, tmp_path, 8, max_tokens=20).equal(blocks[:2])
    with pytest.raises(DataError, match="33 tokens"):
        token_blocks(tokenizer, tmp_path, 34)


def test_documents_come_from_text_jsonl_and_directories(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.jsonl").write_text('{"text": "zero"}\n\n{"text": "one"}\n')
    (tmp_path / ".hidden").write_text("no")
    assert list(read_documents(tmp_path)) == ["zero", "one", "two"]
    assert list(read_documents(tmp_path / "b.txt")) == ["two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"no": 1}', "JSONL"),
        ("a.jsonl", b"text", "JSONL"),
        ("a.jsonl", b'{"text": 5}', "JSONL"),
        ("a.txt", b"\xff\xfe\xfd", "UTF-8"),
    ],
)
def test_invalid_data_is_refused_by_name(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(read_documents(tmp_path / name))


def test_missing_data_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        list(read_documents(tmp_path / "nowhere"))
