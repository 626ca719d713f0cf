"""A softmax layer of a hybrid model: attention over the last N keys."""

from liger_export.onnx_functions.stock.parts import window_attention

__all__ = ["SOFTMAX"]

SOFTMAX = window_attention("output")
