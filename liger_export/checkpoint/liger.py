"""A Liger checkpoint directory: its config and its tensors, checked against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liger_export.checkpoint.paper import adopt_tensors, translate_config
from liger_export.checkpoint.reader import Checkpoint
from liger_export.config import MODEL_TYPES, LigerConfig, read_config_json

__all__ = ["LigerCheckpoint", "open_liger"]


@dataclass(frozen=True)
class LigerCheckpoint:
    """What is read from one directory.

    Attributes:
        values: its config.json, in this project's terms.
        config: the same, as the rest of the project uses it.
        weights: its tensors.
    """

    values: dict[str, Any]
    config: LigerConfig
    weights: Checkpoint

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self.weights.directory


def open_liger(directory: Path) -> LigerCheckpoint:
    """Open a checkpoint that ``linearize`` wrote, or the paper's implementation, and check it.

    Raises:
        CheckpointError: it is incomplete, damaged, or config and tensors do not belong together.
        UnsupportedModelError: it is no Liger model, or has a setting that is not supported.
    """
    values = read_config_json(directory)
    if values.get("model_type") not in MODEL_TYPES:
        LigerConfig.from_dict(values)  # says what it is instead
    weights = Checkpoint.open(directory)
    if values.get("liger_format") is None:
        weights = Checkpoint(directory, adopt_tensors(weights.tensors))
        values = translate_config(values, weights.tensors)
    config = LigerConfig.from_dict(values)
    weights.check(config)
    return LigerCheckpoint(values, config, weights)
