"""``evaluate``: perplexity and next-token accuracy on text, by position."""

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
    """One model on one text.

    Attributes:
        model: what was evaluated.
        blocks: the tokens it read, int64 [N, T].
        scores: how well it predicted them.
    """

    model: EvaluatedModel
    blocks: Tensor
    scores: PositionScores

    @property
    def quality(self) -> Quality:
        """Over all positions."""
        return self.scores.total

    def compares_with(self, first: "Evaluation") -> bool:
        """Whether both models read the same tokens; figures over different ones do not compare."""
        return self.blocks.equal(first.blocks)

    def share_of(self, first: "Evaluation") -> float | None:
        """This accuracy over another's, or None where they do not compare or the other's is zero."""
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

    The text is cut into blocks, each read from its start; all three kinds read the same blocks and are counted the
    same way. Started by ``accelerate launch``, the processes share the blocks and each returns the figures of all.

    Args:
        path: the model's directory.
        text: a text or JSONL file, or a directory of such files.
        adapters: LoRA adapters for a checkpoint.
        sequence_length: tokens of a block; it may be longer than any that the model was trained on.
        batch_size: blocks that PyTorch reads at once; a package reads one after the other.
        max_tokens: read no more of the text than this.
        device: of PyTorch models, such as ``cuda:0``; default: a GPU if there is one.
        dtype: of PyTorch models: float32, bfloat16 or float16.

    Raises:
        InputError: ``path`` is no model, or a setting is out of range.
        DataError: the text is absent, unreadable or too short.
        PackageError, CheckpointError, UnsupportedModelError, AdapterError: the model is damaged or does not fit.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}.", "It must be 1 or more.")
    model = open_model(path, adapters, device, dtype)
    blocks = text_blocks(model, text, sequence_length, max_tokens)
    return Evaluation(model, blocks, model.score(blocks, batch_size))


def text_blocks(model: EvaluatedModel, text: Path, sequence_length: int, max_tokens: int | None = None) -> Tensor:
    """Text as blocks of a model's own tokens, int64 [N, sequence_length].

    Raises:
        InputError: a length is out of range, or the tokenizer gives tokens that the model does not know.
        DataError: the text is absent, unreadable or too short.
    """
    if sequence_length < 2:
        raise InputError(f"sequence_length is {sequence_length}.", "There is a token to predict from 2 on.")
    if max_tokens is not None and max_tokens < sequence_length:
        raise InputError(f"max_tokens is {max_tokens}.", f"One block of {sequence_length} is the least.")
    blocks = token_blocks(model.tokenizer, text, sequence_length, max_tokens)
    if (largest := int(blocks.max())) >= model.vocab_size:
        raise InputError(
            f"The tokenizer of {model.path} gives token {largest}, and its model knows {model.vocab_size:,}.",
            "They belong to different models: restore the tokenizer's files.",
        )
    return blocks


def report_json(evaluations: Sequence[Evaluation], text: Path) -> str:
    """All figures as JSON: per model those of the whole, its share of the first's accuracy, and those by position."""
    models = []
    for evaluation in evaluations:
        ranges = [
            {"first": positions.start, "last": positions.stop - 1, **_figures(quality)}
            for positions, quality in evaluation.scores.ranges()
        ]
        models.append(
            {
                "model": evaluation.model.name,
                "kind": evaluation.model.kind,
                **_figures(evaluation.quality),
                "share_of_first": evaluation.share_of(evaluations[0]),
                "positions": ranges,
            }
        )
    length = evaluations[0].blocks.shape[1]
    return json.dumps({"text": text.resolve().name, "sequence_length": length, "models": models}, indent=1) + "\n"


def _figures(quality: Quality) -> dict[str, Any]:
    return {
        "loss": quality.loss,
        "perplexity": quality.perplexity,
        "accuracy": quality.accuracy,
        "tokens": quality.tokens,
    }
