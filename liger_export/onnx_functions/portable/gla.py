"""Liger-GLA as a portable body. Reference: ``naive_gla_attention``."""

from liger_export.onnx_functions.portable.nodes import FLOAT, cast, reshape
from liger_export.onnx_functions.portable.recurrence import (
    decays,
    next_state,
    one_token,
    query_by_chunk,
    read_keys,
    tokens_from_chunks,
)
from liger_export.onnx_functions.portable.sizes import Sizes
from liger_export.onnx_functions.portable.snippets import heads_and_positions, log_gate, mixed, zero_padding
from liger_export.onnx_functions.portable.window import attention

__all__ = ["gated_linear", "gla"]


def gla(sizes: Sizes) -> str:
    """Liger-GLA (arXiv 2503.01496, equations 5 to 8): the gate is computed from the key; feature maps are softmax."""
    features = f"""
    open_features = Softmax <axis = -1> (wide_key)
    {log_gate("open_gate", "wide_key", sizes.gate_normalizer)}"""
    return gated_linear(sizes, features)


def gated_linear(sizes: Sizes, features: str) -> str:
    """A gated linear recurrence, read by softmax(q), mixed with the window.

    Args:
        sizes: of the body.
        features: text that reads ``wide_key`` and defines ``open_features`` and ``open_gate``, both [G, T, D].
    """
    recurrence_inputs = f"""
    query_features = Softmax <axis = -1> (wide_query)
    {features}
    {cast("wide_value", "value_heads", FLOAT)}
    {zero_padding("log_gate", "open_gate", sizes)}
    {zero_padding("features", "open_features", sizes)}
    {zero_padding("blanked_value", "wide_value", sizes)}"""
    recurrence = _one_token(sizes) if sizes.length == 1 else _many_tokens(sizes)
    return heads_and_positions(sizes) + recurrence_inputs + recurrence + attention(sizes, "window") + mixed(sizes)


def _one_token(sizes: Sizes) -> str:
    width, kv_heads = sizes.head_dim, sizes.num_key_value_heads
    return f"""
    {one_token("features", "blanked_value", "recurrent_state", width, width, kv_heads)}
    {reshape("grouped_query", "query_features", 1, kv_heads, sizes.num_queries_per_kv, width)}
    read = MatMul (grouped_query, next_recurrent_state)
    {reshape("recurrent", "read", 1, 1, sizes.num_heads * width)}"""


def _many_tokens(sizes: Sizes) -> str:
    width = sizes.head_dim
    return (
        decays(sizes, width)
        + next_state(sizes, "features", "blanked_value", "recurrent_state", width, width)
        + query_by_chunk("chunk_query", "query_features", sizes, width)
        + read_keys("chunk_query", "recurrent_state", "read", sizes, width, width)
        + tokens_from_chunks("recurrent", "read", sizes, width)
    )
