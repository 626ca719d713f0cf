"""Liger-HGRN2: the decay is the forget gate f = sigmoid(k), and the key is 1 - f (arXiv 2404.07904, equation 7)."""

from liger_export.onnx_functions.stock.gla import RECURRENCE
from liger_export.onnx_functions.stock.snippets import MIX, SIZES, softmax_per_head, window_attention

__all__ = ["HGRN2_BODY"]

# 1 - sigmoid(k) = 1 / (1 + exp k). ONNX Runtime's Sigmoid clips its input at -18 on CPU. This expression loses no
# digits, and gives 0 when exp overflows.
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

HGRN2_BODY = SIZES + softmax_per_head("query") + FEATURES + RECURRENCE + window_attention("window") + MIX
