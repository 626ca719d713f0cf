"""Liger-GLA: softmax features, gates pooled from the keys (arXiv 2503.01496, equations 5 to 8)."""

from liger_export.ops.onnx_bodies.parts import MIX, SIZES, gate, softmax_per_head, window_attention

__all__ = ["GLA", "RECURRENCE"]

# Reads query_features, key_features, value and gate.
RECURRENCE = """
    recurrent, next_recurrent_state = com.microsoft.LinearAttention
        <update_rule = "gated", scale: float = @recurrent_weight,
         q_num_heads: int = @num_heads, kv_num_heads: int = @num_key_value_heads>
        (query_features, key_features, value, recurrent_state, gate)
"""

GLA = (
    SIZES
    + softmax_per_head("query")
    + softmax_per_head("key")
    + gate("key")
    + RECURRENCE
    + window_attention("window")
    + MIX
)
