"""A Liger checkpoint: config and tensors, checked against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liger_export.checkpoint.names import expected_tensors
from liger_export.checkpoint.paper import translate_config, translate_tensors
from liger_export.checkpoint.reader import Checkpoint
from liger_export.config import MODEL_TYPES, LigerConfig, read_config_json, without_machine_path
from liger_export.errors import CheckpointError
from liger_export.files import reading
from liger_export.precision import EMBEDDING, LM_HEAD

__all__ = ["LigerCheckpoint", "open_liger"]


@dataclass(frozen=True)
class LigerCheckpoint:
    """An open Liger checkpoint.

    Attributes:
        values: the values of its config.json, with this project's field names.
        config: the same values as a ``LigerConfig``.
        weights: its tensors.
    """

    values: dict[str, Any]
    config: LigerConfig
    weights: Checkpoint

    @property
    def directory(self) -> Path:
        """The checkpoint directory."""
        return self.weights.directory


def open_liger(directory: Path) -> LigerCheckpoint:
    """Open and check a checkpoint that ``linearize`` or the paper implementation wrote.

    Raises:
        CheckpointError: it is incomplete or damaged, or its config and tensors do not match.
        UnsupportedModelError: it is not a Liger model or has an unsupported setting.
    """
    with reading(directory, CheckpointError, "Restore the original checkpoint."):
        return _open(directory)


def _open(directory: Path) -> LigerCheckpoint:
    values = without_machine_path(read_config_json(directory))
    if values.get("model_type") not in MODEL_TYPES:
        LigerConfig.from_dict(values)  # raises an error that names the model type
    weights = Checkpoint.open(directory)
    if values.get("liger_format") is None:
        weights = Checkpoint(directory, translate_tensors(weights.tensors))
        values = translate_config(values, weights.tensors)
    config = LigerConfig.from_dict(values)
    weights.check(config)
    unused = frozenset(weights.tensors) - set(expected_tensors(config))
    tied = (EMBEDDING, LM_HEAD) if config.tie_word_embeddings else ()
    return LigerCheckpoint(values, config, Checkpoint(directory, weights.tensors, tied, unused))
