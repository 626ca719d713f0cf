"""Next-token quality on text: the figures that finetuning and evaluation report."""

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
    "losses_and_hits",
    "measure_quality",
    "score_blocks",
]

FIRST_RANGE = 64  # positions; each range after it reaches twice as far

Reader = Callable[[Tensor], Iterator[Tensor]]
"""Reads sequences [B, T] from their start; yields logits [B, t, vocab_size] of consecutive positions, T in all."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Next-token quality over some text.

    Attributes:
        loss: mean negative log-likelihood in nats.
        accuracy: share of tokens that are the model's first choice.
        tokens: predictions counted.
    """

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


@dataclass(frozen=True, slots=True, eq=False)
class PositionScores:
    """Next-token scores over blocks of T + 1 tokens, by position; a prediction at position p has read p + 1 tokens.

    Attributes:
        losses: float64 [T], negative log-likelihood summed over the blocks.
        hits: float64 [T], in how many blocks the next token was the model's first choice.
        blocks: how many there were.
    """

    losses: Tensor
    hits: Tensor
    blocks: int

    @property
    def total(self) -> Quality:
        """Over all positions."""
        return self.over(range(len(self.losses)))

    def over(self, positions: range) -> Quality:
        """Over positions from ``positions.start`` until ``positions.stop``."""
        part = slice(positions.start, positions.stop)
        count = self.blocks * len(positions)
        return Quality(float(self.losses[part].sum()) / count, float(self.hits[part].sum()) / count, count)

    def ranges(self) -> list[tuple[range, Quality]]:
        """Over positions 0 to 63, 64 to 127, 128 to 255, and so on in powers of two."""
        starts = [0]
        while (start := max(2 * starts[-1], FIRST_RANGE)) < len(self.losses):
            starts.append(start)
        stops = [*starts[1:], len(self.losses)]
        return [(range(*bounds), self.over(range(*bounds))) for bounds in zip(starts, stops, strict=True)]


def measure_quality(model: nn.Module, blocks: Tensor, batch_size: int = 8) -> Quality:
    """Next-token loss and accuracy over token blocks, int64 [N, T], in the model's own precision.

    Started by ``accelerate launch``, the processes share the blocks and each returns the figures of all.
    """

    def read(batch: Tensor) -> Iterator[Tensor]:
        yield model(input_ids=batch).logits

    was_training = model.training
    model.eval()
    scores = score_blocks(read, blocks, batch_size, next(model.parameters()).device)
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
    """Score every token of each block but its first.

    Started by ``accelerate launch``, the processes share the blocks and each returns the scores of all.

    Args:
        read: the model.
        blocks: int64 [N, T], T >= 2.
        batch_size: blocks to read at once.
        device: where ``read`` wants its tokens.
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
                sums[:, start:stop] += losses_and_hits(logits, batch[:, 1 + start : 1 + stop])
            start = stop
        progress.advance(1)
    # by name, because reduce means by default; float64 is not to be had on every device
    place = processes().device
    losses, hits = reduce(sums.to("cpu" if place.type == "mps" else place), reduction="sum").cpu()
    return PositionScores(losses, hits, len(blocks))


def losses_and_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood and right first choices, float64 [2, t], summed over rows: one by one, to save memory."""
    sums = torch.zeros(2, targets.shape[1], dtype=torch.float64)
    for scores, wanted in zip(logits, targets, strict=True):
        sums[0] += F.cross_entropy(scores.float(), wanted, reduction="none").cpu()
        sums[1] += (scores.argmax(-1) == wanted).cpu()
    return sums


def _share(blocks: Tensor, batch_size: int) -> Iterator[tuple[Tensor, bool]]:
    """This process's batches, and whether each counts.

    Every process gets as many, because a sharded model runs only if all processes run it.
    """
    state = processes()
    batches = blocks.split(batch_size)
    for start in range(0, len(batches), state.num_processes):
        index = start + state.process_index
        yield batches[min(index, len(batches) - 1)], index < len(batches)
