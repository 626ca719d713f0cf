"""A layer that keeps softmax attention, in a bounded window: no recurrence."""

from liger_export.onnx_functions.stock.snippets import window_attention

__all__ = ["SOFTMAX_BODY"]

SOFTMAX_BODY = window_attention("output")
