"""A softmax layer of a hybrid model: attention over the last N keys."""

from liger_export.ops.onnx_bodies.parts import window_attention

__all__ = ["SOFTMAX"]

SOFTMAX = window_attention("output")
