"""The ``evaluate`` command: perplexity and next-token accuracy on text, in total and by position."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from liger_export.data import token_blocks
from liger_export.errors import InputError
from liger_export.evaluate.models import EvaluatedModel, open_model
from liger_export.metrics import PositionScores, Quality

__all__ = ["Evaluation", "evaluate", "report_json", "text_blocks"]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The scores of one model on one text.

    Attributes:
        model: the evaluated model.
        blocks: the tokens it read, int64 [N, T].
        scores: its next-token scores by position.
    """

    model: EvaluatedModel
    blocks: Tensor
    scores: PositionScores

    @property
    def quality(self) -> Quality:
        """Metrics over all positions."""
        return self.scores.total

    def compares_with(self, first: "Evaluation") -> bool:
        """Return True if both models read the same tokens. Metrics over different tokens are not comparable."""
        return self.blocks.equal(first.blocks)

    def share_of(self, first: "Evaluation") -> float | None:
        """This accuracy divided by another's; None if they are not comparable or the other is zero."""
        if not self.compares_with(first) or not first.quality.accuracy:
            return None
        return self.quality.accuracy / first.quality.accuracy


def evaluate(
    path: Path,
    text: Path,
    *,
    adapters: tuple[Path, ...] = (),
    sequence_length: int = 1024,
    batch_size: int = 8,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> Evaluation:
    """Measure a package, a Liger checkpoint or a base checkpoint on text.

    The text is cut into blocks, and each block is read from an empty state. All three kinds of model read the same
    blocks and are scored the same way. Under ``accelerate launch`` the processes share the blocks, and each returns
    the metrics over all of them.

    Args:
        path: the model's directory.
        text: a text or JSONL file, or a directory of such files.
        adapters: LoRA adapters for a checkpoint.
        sequence_length: tokens per block; may exceed the length that the model was trained on.
        batch_size: blocks per PyTorch call; a package reads one block at a time.
        max_tokens: read at most this many tokens of the text.
        device: device of PyTorch models, such as ``cuda:0``.
        dtype: dtype of PyTorch models: float32, bfloat16 or float16.

    Raises:
        InputError: ``path`` is not a model, or a setting is out of range.
        DataError: the text is missing, unreadable or too short.
        PackageError, CheckpointError, UnsupportedModelError, AdapterError: the model is damaged or does not match.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}.", "It must be 1 or more.")
    model = open_model(path, adapters, device, dtype)
    blocks = text_blocks(model, text, sequence_length, max_tokens)
    return Evaluation(model, blocks, model.score(blocks, batch_size))


def text_blocks(model: EvaluatedModel, text: Path, sequence_length: int, max_tokens: int | None = None) -> Tensor:
    """Tokenize a text with the model's own tokenizer and cut it into blocks, int64 [N, sequence_length].

    Raises:
        InputError: a length is out of range, or the model does not know a token.
        DataError: the text is missing, unreadable or too short.
    """
    if sequence_length < 2:
        raise InputError(f"sequence_length is {sequence_length}.", "It must be 2 or more: one token predicts the next.")
    if max_tokens is not None and max_tokens < sequence_length:
        raise InputError(f"max_tokens is {max_tokens}.", f"It must be at least one block of {sequence_length} tokens.")
    return token_blocks(model.encoder, text, sequence_length, max_tokens)


def report_json(evaluations: Sequence[Evaluation], text: Path) -> str:
    """Format all metrics as JSON: for each model the totals, its share of the first's accuracy, and by position."""
    models = []
    for evaluation in evaluations:
        ranges = [
            {"first": positions.start, "last": positions.stop - 1, **_metrics(quality)}
            for positions, quality in evaluation.scores.ranges()
        ]
        models.append(
            {
                "model": evaluation.model.name,
                "kind": evaluation.model.kind,
                **_metrics(evaluation.quality),
                "share_of_first": evaluation.share_of(evaluations[0]),
                "positions": ranges,
            }
        )
    length = evaluations[0].blocks.shape[1]
    return json.dumps({"text": text.resolve().name, "sequence_length": length, "models": models}, indent=1) + "\n"


def _metrics(quality: Quality) -> dict[str, Any]:
    return {
        "loss": quality.loss,
        "perplexity": quality.perplexity,
        "accuracy": quality.accuracy,
        "tokens": quality.tokens,
    }
