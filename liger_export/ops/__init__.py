"""The operators of Liger attention: a naive reference, fast PyTorch forms, and their ONNX form."""

from liger_export.ops.attention import gla_attention
from liger_export.ops.naive import naive_gla_attention, naive_gla_recurrence, naive_rotary, naive_window_attention
from liger_export.ops.recurrence import chunked_recurrence, gated_recurrence, step_recurrence
from liger_export.ops.window import rotate, window_attention

__all__ = [
    "chunked_recurrence",
    "gated_recurrence",
    "gla_attention",
    "naive_gla_attention",
    "naive_gla_recurrence",
    "naive_rotary",
    "naive_window_attention",
    "rotate",
    "step_recurrence",
    "window_attention",
]
