"""Liger-HGRN2 as a portable body. Reference: ``naive_hgrn2_attention``."""

from liger_export.onnx_functions.portable.gla import gated_linear
from liger_export.onnx_functions.portable.nodes import number
from liger_export.onnx_functions.portable.sizes import Sizes
from liger_export.onnx_functions.portable.snippets import log_gate

__all__ = ["hgrn2"]


def hgrn2(sizes: Sizes) -> str:
    """HGRN2 (arXiv 2404.07904, equation 7): decay sigmoid(k), key 1 - sigmoid(k) = 1 / (1 + exp k)."""
    features = f"""
    {number("all", 1.0)}
    key_power = Exp (wide_key)
    key_power_and_one = Add (key_power, all)
    open_features = Reciprocal (key_power_and_one)
    {log_gate("open_gate", "wide_key", 1.0)}"""
    return gated_linear(sizes, features)
