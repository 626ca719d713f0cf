"""Next-token metrics on text, reported by finetuning and evaluation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from liger_export.distributed import processes
from liger_export.progress import NO_PROGRESS, Progress

__all__ = [
    "PositionScores",
    "Quality",
    "losses_and_top1",
    "measure_quality",
    "score_blocks",
]

FIRST_RANGE = 64  # positions; each later range ends at twice the position

Reader = Callable[[Tensor], Iterator[Tensor]]
"""Reads sequences [B, T] from their start; yields logits [B, t, vocab_size] of consecutive pieces of T."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Next-token metrics over some text.

    Attributes:
        loss: mean negative log-likelihood in nats.
        accuracy: share of tokens that the model predicts as the most likely (top-1 accuracy).
        tokens: number of predictions.
    """

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Perplexity, exp(loss)."""
        return math.exp(self.loss)


@dataclass(frozen=True, slots=True, eq=False)
class PositionScores:
    """Next-token scores by position, over blocks of T + 1 tokens. The prediction at position p has read p + 1 tokens.

    Attributes:
        losses: float64 [T], negative log-likelihood in nats, summed over the blocks.
        top1_correct: float64 [T], number of blocks in which the next token was the model's most likely one.
        blocks: number of blocks.
    """

    losses: Tensor
    top1_correct: Tensor
    blocks: int

    @property
    def total(self) -> Quality:
        """Metrics over all positions."""
        return self.over(range(len(self.losses)))

    def over(self, positions: range) -> Quality:
        """Metrics over the positions from ``positions.start`` up to but excluding ``positions.stop``."""
        part = slice(positions.start, positions.stop)
        count = self.blocks * len(positions)
        return Quality(float(self.losses[part].sum()) / count, float(self.top1_correct[part].sum()) / count, count)

    def ranges(self) -> list[tuple[range, Quality]]:
        """Metrics over positions 0 to 63, 64 to 127, 128 to 255, and so on in powers of two."""
        starts = [0]
        while (start := max(2 * starts[-1], FIRST_RANGE)) < len(self.losses):
            starts.append(start)
        stops = [*starts[1:], len(self.losses)]
        return [(range(*bounds), self.over(range(*bounds))) for bounds in zip(starts, stops, strict=True)]


def measure_quality(model: nn.Module, blocks: Tensor, batch_size: int = 8, progress: Progress = NO_PROGRESS) -> Quality:
    """Measure next-token loss and accuracy over token blocks, int64 [N, T], in the model's own precision.

    Under ``accelerate launch`` the processes share the blocks, and each returns the metrics over all of them.
    ``progress`` counts the batches of this process.
    """

    def read(batch: Tensor) -> Iterator[Tensor]:
        yield model(input_ids=batch).logits

    was_training = model.training
    model.eval()
    scores = score_blocks(read, blocks, batch_size, next(model.parameters()).device, progress)
    model.train(was_training)
    return scores.total


@torch.no_grad()
def score_blocks(
    read: Reader,
    blocks: Tensor,
    batch_size: int,
    device: torch.device | str,
    progress: Progress = NO_PROGRESS,
) -> PositionScores:
    """Score every token of each block except the first.

    Under ``accelerate launch`` the processes share the blocks, and each returns the scores of all of them.

    Args:
        read: the model.
        blocks: int64 [N, T], T >= 2.
        batch_size: blocks per call of ``read``.
        device: device of the tokens passed to ``read``.
        progress: counts the batches of this process.
    """
    sums = torch.zeros(2, blocks.shape[1] - 1, dtype=torch.float64)
    shared = list(_share(blocks, batch_size))
    progress.start(len(shared))
    for batch, is_counted in shared:
        batch = batch.to(device)
        start = 0
        for logits in read(batch[:, :-1]):
            stop = start + logits.shape[1]
            if is_counted:
                sums[:, start:stop] += losses_and_top1(logits, batch[:, 1 + start : 1 + stop])
            start = stop
        progress.advance(1)
    place = processes().device
    # reduce averages by default; MPS has no float64
    losses, top1_correct = reduce(sums.to("cpu" if place.type == "mps" else place), reduction="sum").cpu()
    return PositionScores(losses, top1_correct, len(blocks))


def losses_and_top1(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum negative log-likelihoods and top-1 correct predictions over rows: float64 [2, t].

    Rows are processed one by one to save memory.

    Args:
        logits: [B, t, vocab_size].
        targets: the tokens to predict, int64 [B, t].
    """
    sums = torch.zeros(2, targets.shape[1], dtype=torch.float64)
    for scores, expected in zip(logits, targets, strict=True):
        sums[0] += F.cross_entropy(scores.float(), expected, reduction="none").cpu()
        sums[1] += (scores.argmax(-1) == expected).cpu()
    return sums


def _share(blocks: Tensor, batch_size: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield this process's batches, each with a flag that tells if it is counted.

    Every process gets the same number of batches, because a sharded model runs only if all processes run it.
    """
    state = processes()
    batches = blocks.split(batch_size)
    for start in range(0, len(batches), state.num_processes):
        index = start + state.process_index
        yield batches[min(index, len(batches) - 1)], index < len(batches)
