"""Liger-GLA: softmax features, and gates computed from the keys (arXiv 2503.01496, equations 5 to 8).

The paper pools the keys to the gates' width. Here that width is the keys' own, so pooling is the identity.
"""

from liger_export.onnx_functions.stock.snippets import MIX, SIZES, gate, softmax_per_head, window_attention

__all__ = ["GLA_BODY", "RECURRENCE"]

# Reads query_features, key_features, value and gate; defines recurrent and next_recurrent_state.
# LinearAttention takes one dtype for all inputs, and the state is float32.
RECURRENCE = """
    wide_query_features = Cast <to = 1> (query_features)
    wide_key_features = Cast <to = 1> (key_features)
    wide_value = Cast <to = 1> (value)
    wide_gate = Cast <to = 1> (gate)
    wide_recurrent, next_recurrent_state = com.microsoft.LinearAttention
        <update_rule = "gated", scale: float = @recurrent_weight,
         q_num_heads: int = @num_heads, kv_num_heads: int = @num_key_value_heads>
        (wide_query_features, wide_key_features, wide_value, recurrent_state, wide_gate)
    recurrent = CastLike (wide_recurrent, value)
"""

GLA_BODY = (
    SIZES
    + softmax_per_head("query")
    + softmax_per_head("key")
    + gate("key")
    + RECURRENCE
    + window_attention("window")
    + MIX
)
