"""The exceptions of liger-export. Every message states a cause and a fix."""

__all__ = [
    "AdapterError",
    "BoundError",
    "BusyError",
    "CheckpointError",
    "DataError",
    "EngineError",
    "EnvironmentMismatchError",
    "InputError",
    "KernelError",
    "LigerExportError",
    "NotFiniteError",
    "OutputError",
    "PackageError",
    "QuantizationError",
    "UnsupportedModelError",
]


class LigerExportError(Exception):
    """Base class of all errors that this project raises deliberately.

    Args:
        cause: the problem, with the name of the file, tensor or value.
        fix: what the user can do about it.
    """

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause} {fix}")
        self.cause = cause
        self.fix = fix


class CheckpointError(LigerExportError):
    """A checkpoint directory is incomplete, damaged or not a checkpoint."""


class UnsupportedModelError(LigerExportError):
    """A checkpoint is valid, but its architecture or one of its settings is not supported."""


class AdapterError(LigerExportError):
    """A LoRA adapter is damaged or does not fit the checkpoint."""


class PackageError(LigerExportError):
    """A package is incomplete, was changed after it was written, or has an unsupported format."""


class QuantizationError(LigerExportError):
    """Weights cannot be stored in the requested precision."""


class InputError(LigerExportError):
    """An argument is invalid, such as a token id, a state or a sampling setting."""


class BusyError(LigerExportError):
    """A request is refused because too many others are waiting."""


class NotFiniteError(InputError):
    """The logits are not finite, because a value was too large for the precision."""


class KernelError(LigerExportError):
    """No kernel is available: unsupported shape, dtype or GPU, or missing or damaged compiled code."""


class EngineError(LigerExportError):
    """An engine cannot be built: unknown device, rejected graph, or a build that fails its checks."""


class BoundError(LigerExportError):
    """A measured error exceeds its bound."""


class DataError(LigerExportError):
    """A text or JSONL file cannot be used for training, calibration or validation."""


class OutputError(LigerExportError):
    """An output cannot be written, for example because it already exists or the disk is full."""


class EnvironmentMismatchError(LigerExportError):
    """A required library is not installed or is too old."""
