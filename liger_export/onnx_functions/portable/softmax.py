"""A layer that keeps softmax attention as a portable body: the window only."""

from liger_export.onnx_functions.portable.sizes import Sizes
from liger_export.onnx_functions.portable.snippets import heads_and_positions
from liger_export.onnx_functions.portable.window import attention

__all__ = ["softmax"]


def softmax(sizes: Sizes) -> str:
    """Softmax attention in the window."""
    return heads_and_positions(sizes) + attention(sizes, "output")
