"""ONNX Runtime, which from 1.29 on reports its use to Microsoft over the network unless told not to.

It reads the wish from a variable while it is imported and starts a thread for it; its ``disable_telemetry_events``
comes too late. A process that imports ``onnxruntime`` before ``liger_export``, or sets the variable, decides itself.
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
    """Options of a session that says nothing but errors.

    Args:
        threads: within an operator; None lets ONNX Runtime choose.
    """
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def library_path() -> Path | None:
    """Path of the shared library of liger-export's own operators; None if it was not compiled at installation."""
    folders = [Path(__file__).parent / LIBRARY_FOLDER]
    with suppress(PackageNotFoundError):  # an editable install keeps compiled files apart from the sources
        folders.append(Path(str(distribution("liger-export").locate_file(f"liger_export/{LIBRARY_FOLDER}"))))
    return next((path for folder in folders for name in LIBRARY_NAMES if (path := folder / name).is_file()), None)
