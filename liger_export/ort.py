"""ONNX Runtime, which from 1.29 on reports its use to Microsoft over the network unless told not to.

It reads the wish from a variable while it is imported and starts a thread for it; its ``disable_telemetry_events``
comes too late. A process that imports ``onnxruntime`` before ``liger_export``, or sets the variable, decides itself.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
