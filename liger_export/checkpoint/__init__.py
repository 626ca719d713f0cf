"""Lazy, strict reading of checkpoints and adapters, from safetensors files only."""

from liger_export.checkpoint.adapter import Adapter, write_base_record
from liger_export.checkpoint.base import BaseModel, find_base, open_base
from liger_export.checkpoint.liger import LigerCheckpoint, open_liger
from liger_export.checkpoint.merged import MergedCheckpoint
from liger_export.checkpoint.names import expected_tensors, learned_tensors
from liger_export.checkpoint.reader import Checkpoint
from liger_export.checkpoint.writer import weight_bytes, write_weights

__all__ = [
    "Adapter",
    "BaseModel",
    "Checkpoint",
    "LigerCheckpoint",
    "MergedCheckpoint",
    "expected_tensors",
    "find_base",
    "learned_tensors",
    "open_base",
    "open_liger",
    "weight_bytes",
    "write_base_record",
    "write_weights",
]
