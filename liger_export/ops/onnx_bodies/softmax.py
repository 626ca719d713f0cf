"""A softmax layer of a hybrid model: attention over the last N keys."""

from liger_export.ops.onnx_bodies.parts import mixer, window_attention

__all__ = ["SOFTMAX"]

SOFTMAX = mixer("SoftmaxAttention", states=(), attributes={}, body=window_attention("output"))
