import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from liger_export.data import read_documents, token_blocks
from liger_export.errors import DataError
from liger_export.metrics import PositionScores, measure_quality, score_blocks
from liger_export.runtime import load
from tests.recorder import Recorder
from tests.tiny import END_OF_TEXT, load_model

BLOCKS = torch.randint(1, 260, (5, 150), generator=torch.Generator().manual_seed(0))


def expected_scores(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and hits by position, float64 [T - 1], from whole logits [N, T, vocab_size]."""
    wide, targets = logits[:, :-1].double(), BLOCKS[:, 1:]
    log_probabilities = wide - wide.exp().sum(-1, keepdim=True).log()
    losses = -log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return losses.sum(0), (wide.argmax(-1) == targets).double().sum(0)


def test_scores_by_position_are_those_of_whole_logits(liger_checkpoint: Path) -> None:
    model = load_model(liger_checkpoint).train()
    with torch.no_grad():
        losses, hits = expected_scores(model(BLOCKS).logits)
    told = Recorder()
    scores = score_blocks(lambda batch: iter(model(batch).logits.split(40, dim=1)), BLOCKS, 2, "cpu", told)
    torch.testing.assert_close(scores.losses, losses, rtol=1e-5, atol=1e-5)
    assert scores.hits.equal(hits)
    assert [report[:2] for report in told.reports] == [(1, 3), (2, 3), (3, 3)]
    quality = measure_quality(model, BLOCKS, batch_size=3)
    assert quality.loss == pytest.approx(float(losses.sum()) / (5 * 149), rel=1e-6)
    assert quality.perplexity == pytest.approx(math.exp(quality.loss))
    assert (quality.accuracy, quality.tokens) == (float(hits.sum()) / (5 * 149), 5 * 149)
    assert model.training


@pytest.mark.parametrize(
    ("length", "stops"),
    [(1, [1]), (64, [64]), (65, [64, 65]), (300, [64, 128, 256, 300]), (512, [64, 128, 256, 512])],
)
def test_ranges_are_powers_of_two_and_add_up(length: int, stops: list[int]) -> None:
    generator = torch.Generator().manual_seed(length)
    losses = torch.rand(length, dtype=torch.float64, generator=generator)
    scores = PositionScores(losses, torch.ones(length, dtype=torch.float64), blocks=3)
    ranges = scores.ranges()
    assert [positions.stop for positions, _ in ranges] == stops
    assert [positions.start for positions, _ in ranges] == [0, *stops[:-1]]
    assert sum(quality.tokens for _, quality in ranges) == scores.total.tokens == 3 * length
    total = sum(quality.loss * quality.tokens for _, quality in ranges)
    assert total == pytest.approx(scores.total.loss * scores.total.tokens)


def test_blocks_are_the_joined_documents_cut_in_order(liger_checkpoint: Path, package: Path, tmp_path: Path) -> None:
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
def test_bad_data_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(read_documents(tmp_path / name))


def test_absent_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        list(read_documents(tmp_path / "nowhere"))
