"""A softmax layer of a hybrid model: attention over the last N keys."""

from liger_export.ops.onnx_bodies.parts import WINDOW, mixer

__all__ = ["SOFTMAX"]

SOFTMAX = mixer(
    "SoftmaxAttention",
    states=(),
    attributes={},
    body=WINDOW.replace("window, next_window_key", "output, next_window_key"),
)
