import math
from pathlib import Path

import pytest
import torch

from liger_export.metrics import PositionScores, measure_quality, score_blocks
from tests.recorder import Recorder
from tests.tiny import load_model

BLOCKS = torch.randint(1, 260, (5, 150), generator=torch.Generator().manual_seed(0))


def expected_scores(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and top-1 correct predictions by position, float64 [T - 1], from full logits [N, T, vocab_size]."""
    wide, targets = logits[:, :-1].double(), BLOCKS[:, 1:]
    log_probabilities = wide - wide.exp().sum(-1, keepdim=True).log()
    losses = -log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return losses.sum(0), (wide.argmax(-1) == targets).double().sum(0)


def test_scores_by_position_equal_those_of_full_logits(liger_checkpoint: Path) -> None:
    model = load_model(liger_checkpoint).train()
    with torch.no_grad():
        losses, top1_correct = expected_scores(model(BLOCKS).logits)
    told = Recorder()
    scores = score_blocks(lambda batch: iter(model(batch).logits.split(40, dim=1)), BLOCKS, 2, "cpu", told)
    torch.testing.assert_close(scores.losses, losses, rtol=1e-5, atol=1e-5)
    assert scores.top1_correct.equal(top1_correct)
    assert [report[:2] for report in told.reports] == [(1, 3), (2, 3), (3, 3)]
    quality = measure_quality(model, BLOCKS, batch_size=3)
    assert quality.loss == pytest.approx(float(losses.sum()) / (5 * 149), rel=1e-6)
    assert quality.perplexity == pytest.approx(math.exp(quality.loss))
    assert (quality.accuracy, quality.tokens) == (float(top1_correct.sum()) / (5 * 149), 5 * 149)
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
