"""Reading checkpoints and adapters: lazily, strictly, and never from pickle."""

from liger_export.checkpoint.adapter import Adapter, write_base_record
from liger_export.checkpoint.merged import MergedCheckpoint
from liger_export.checkpoint.names import expected_tensors
from liger_export.checkpoint.reader import Checkpoint

__all__ = ["Adapter", "Checkpoint", "MergedCheckpoint", "expected_tensors", "write_base_record"]
