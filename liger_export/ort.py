"""ONNX Runtime, imported with telemetry disabled.

Since 1.29, ONNX Runtime reports usage to Microsoft over the network. It reads an environment variable and starts the
reporting thread on import, so ``disable_telemetry_events`` comes too late. A process that sets the variable, or imports
``onnxruntime`` before ``liger_export``, keeps its own setting.
"""

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["library_path", "ort", "session_options"]

ERRORS_ONLY = 3
LIBRARY_NAMES = ("libliger_ort.so", "libliger_ort.dylib")
LIBRARY_FOLDER = "plugins/ort"


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Session options that log only errors.

    Args:
        threads: number of threads per operator; None lets ONNX Runtime choose.
    """
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def library_path() -> Path | None:
    """Path of the shared library with liger-export's operators; None if the installation did not compile it."""
    folders = [Path(__file__).parent / LIBRARY_FOLDER]
    with suppress(PackageNotFoundError):  # an editable install keeps compiled files outside the source tree
        folders.append(Path(str(distribution("liger-export").locate_file(f"liger_export/{LIBRARY_FOLDER}"))))
    return next((path for folder in folders for name in LIBRARY_NAMES if (path := folder / name).is_file()), None)
