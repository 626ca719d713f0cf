"""Liger-HGRN2: the forget gate f = sigmoid(k) is the decay, and 1 - f the key (arXiv 2404.07904)."""

from liger_export.onnx_functions.stock.gla import RECURRENCE
from liger_export.onnx_functions.stock.parts import MIX, SIZES, softmax_per_head, window_attention

__all__ = ["HGRN2"]

# 1 - sigmoid(k) = 1 / (1 + exp k). ONNX Runtime's Sigmoid clips its input at -18 on CPU; this form keeps its digits,
# and an overflowing exp still gives 0.
FEATURES = """
    typed_one_scalar = Constant <value = float {1.0}> ()
    typed_one = CastLike (typed_one_scalar, key)
    key_exp = Exp (key)
    key_exp_plus_one = Add (key_exp, typed_one)
    key_features = Reciprocal (key_exp_plus_one)
    negative_key = Neg (key)
    softplus = Softplus (negative_key)
    gate = Neg (softplus)
"""

HGRN2 = SIZES + softmax_per_head("query") + FEATURES + RECURRENCE + window_attention("window") + MIX
