"""Portable bodies of gla, hgrn2, gsa and of layers that keep softmax. Equations: ``ops/naive.py``."""

from liger_export.onnx_functions.portable.heads import gates, heads, is_token, mixed, rotated, tokens_only
from liger_export.onnx_functions.portable.recurrence import (
    advance,
    decays,
    one_token,
    read_keys,
    read_values,
    tokens_of,
    weighted_query,
)
from liger_export.onnx_functions.portable.text import FLOAT, Sizes, cast, number, numbers, reshape, transpose
from liger_export.onnx_functions.portable.window import attention

__all__ = ["gla", "gsa", "hgrn2", "softmax"]


def softmax(sizes: Sizes) -> str:
    """The window alone."""
    return _common(sizes) + attention(sizes, "output")


def gla(sizes: Sizes) -> str:
    """Liger-GLA (arXiv 2503.01496, equations 5 to 8): the gate is made of the key, both feature maps are softmax."""
    features = f"""
    open_features = Softmax <axis = -1> (wide_key)
    {gates("wide_key", sizes.gate_normalizer)}"""
    return _gated_linear(sizes, features)


def hgrn2(sizes: Sizes) -> str:
    """HGRN2 (arXiv 2404.07904, equation 7): the key 1 - sigmoid(k) = 1 / (1 + exp k) is what the gate lets go."""
    features = f"""
    {number("all", 1.0)}
    key_power = Exp (wide_key)
    key_power_and_one = Add (key_power, all)
    open_features = Reciprocal (key_power_and_one)
    {gates("wide_key", 1.0)}"""
    return _gated_linear(sizes, features)


def gsa(sizes: Sizes) -> str:
    """Gated slot attention (arXiv 2409.07146, section 3): two passes over M slots with a softmax between them."""
    width, slots, groups = sizes.head_dim, sizes.slots, sizes.groups
    # s = 1 - exp g = tanh(-g / 2) (1 + exp g): g is small, and 1 - exp g would lose its digits.
    slot_gates = f"""
    {reshape("key_pools", "wide_key", groups, sizes.length, slots, width // slots)}
    {numbers("pool_axis", [3])}
    pooled = ReduceMean <keepdims = 0> (key_pools, pool_axis)
    {gates("pooled", sizes.gate_normalizer).replace("log_gate", "open_gate")}
    {tokens_only("log_gate", "open_gate", sizes)}
    {number("minus_half", -0.5)}
    {number("all", 1.0)}
    half_gate = Mul (log_gate, minus_half)
    half_tanh = Tanh (half_gate)
    kept = Exp (log_gate)
    kept_and_one = Add (kept, all)
    strength = Mul (half_tanh, kept_and_one)
    {cast("wide_value", "value_heads", FLOAT)}
    {tokens_only("blanked_key", "wide_key", sizes)}
    {tokens_only("blanked_value", "wide_value", sizes)}"""
    passes = _one_slot_token(sizes) if sizes.length == 1 else _many_slot_tokens(sizes)
    return _common(sizes) + slot_gates + passes + attention(sizes, "window") + mixed(sizes)


def _common(sizes: Sizes) -> str:
    return heads(sizes) + rotated(sizes) + is_token(sizes)


def _gated_linear(sizes: Sizes, features: str) -> str:
    """A linear recurrence read by softmax(q). ``features`` gives ``open_features`` and ``log_gate`` [G, T, D]."""
    blanked = f"""
    query_features = Softmax <axis = -1> (wide_query)
    {features.replace("log_gate", "open_gate")}
    {cast("wide_value", "value_heads", FLOAT)}
    {tokens_only("log_gate", "open_gate", sizes)}
    {tokens_only("features", "open_features", sizes)}
    {tokens_only("blanked_value", "wide_value", sizes)}"""
    recurrence = _one_token(sizes) if sizes.length == 1 else _many_tokens(sizes)
    return _common(sizes) + blanked + recurrence + attention(sizes, "window") + mixed(sizes)


def _one_token(sizes: Sizes) -> str:
    width, groups = sizes.head_dim, sizes.groups
    return f"""
    {one_token("features", "blanked_value", "recurrent_state", width, width, groups)}
    {reshape("grouped_query", "query_features", 1, groups, sizes.repeats, width)}
    read = MatMul (grouped_query, next_recurrent_state)
    {reshape("recurrent", "read", 1, 1, sizes.heads * width)}"""


def _many_tokens(sizes: Sizes) -> str:
    width = sizes.head_dim
    return (
        decays(sizes, width)
        + advance(sizes, "features", "blanked_value", "recurrent_state", width, width)
        + weighted_query("chunk_query", "query_features", sizes, width)
        + read_keys("chunk_query", "recurrent_state", "read", sizes, width, width)
        + tokens_of("recurrent", "read", sizes, width)
    )


def _one_slot_token(sizes: Sizes) -> str:
    width, slots, groups, repeats = sizes.head_dim, sizes.slots, sizes.groups, sizes.repeats
    return f"""
    {one_token("strength", "blanked_key", "slot_key", slots, width, groups)}
    {one_token("strength", "blanked_value", "slot_value", slots, width, groups)}
    {reshape("grouped_query", "wide_query", 1, groups, repeats, width)}
    {transpose("slot_columns", "next_slot_key", 0, 1, 3, 2)}
    logits = MatMul (grouped_query, slot_columns)
    slot_query = Softmax <axis = -1> (logits)
    read = MatMul (slot_query, next_slot_value)
    {reshape("recurrent", "read", 1, 1, sizes.heads * width)}"""


def _many_slot_tokens(sizes: Sizes) -> str:
    width, slots = sizes.head_dim, sizes.slots
    between = """
    slot_query = Softmax <axis = -1> (logits)"""
    return (
        decays(sizes, slots)
        + weighted_query("chunk_query", "wide_query", sizes, width)
        + advance(sizes, "strength", "blanked_key", "slot_key", slots, width)
        + read_values("chunk_query", "slot_key", "logits", sizes, slots, width)
        + between
        + advance(sizes, "strength", "blanked_value", "slot_value", slots, width)
        + read_keys("slot_query", "slot_value", "read", sizes, slots, width)
        + tokens_of("recurrent", "read", sizes, width)
    )
