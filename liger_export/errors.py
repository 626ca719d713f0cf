"""The exceptions of liger-export: one small hierarchy, every message a cause and a fix."""

__all__ = [
    "AdapterError",
    "BoundError",
    "CheckpointError",
    "DataError",
    "EngineError",
    "EnvironmentMismatchError",
    "InputError",
    "KernelError",
    "LigerExportError",
    "OutputError",
    "PackageError",
    "QuantizationError",
    "UnsupportedModelError",
]


class LigerExportError(Exception):
    """Base of everything this project raises on purpose.

    Args:
        cause: what is wrong, naming the file, tensor or value.
        fix: what the reader can do about it.
    """

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause} {fix}")
        self.cause = cause
        self.fix = fix


class CheckpointError(LigerExportError):
    """A checkpoint directory is incomplete, damaged or not a checkpoint."""


class UnsupportedModelError(LigerExportError):
    """A checkpoint is sound, but of an architecture or setting that is not supported."""


class AdapterError(LigerExportError):
    """A LoRA adapter is damaged or does not fit the checkpoint it is given with."""


class PackageError(LigerExportError):
    """A package is incomplete, changed since it was written, or of a newer format."""


class QuantizationError(LigerExportError):
    """Weights cannot be stored in the precision asked for."""


class InputError(LigerExportError):
    """A call's argument is out of range: a token id, a state, a sampling setting."""


class KernelError(LigerExportError):
    """No kernel computes what is asked for: the shape, the dtype or the GPU is another than it was made for."""


class EngineError(LigerExportError):
    """An engine cannot be built: a device is unknown, a graph is refused, or what was built is not what it must be."""


class BoundError(LigerExportError):
    """What was built does not compute what it must, within its bound."""


class DataError(LigerExportError):
    """A text or JSONL file for training or validation cannot be used."""


class OutputError(LigerExportError):
    """An output cannot be written: it exists already, or the disk is full."""


class EnvironmentMismatchError(LigerExportError):
    """The installation lacks a library, or has one too old for the task."""
