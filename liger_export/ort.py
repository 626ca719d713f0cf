"""ONNX Runtime, which from 1.29 on reports its use to Microsoft over the network unless told not to.

It reads the wish from a variable while it is imported and starts a thread for it; its ``disable_telemetry_events``
comes too late. A process that imports ``onnxruntime`` before ``liger_export``, or sets the variable, decides itself.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort", "session_options"]

ERRORS_ONLY = 3


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
