"""Liger-GSA as a portable body. Reference: ``naive_gsa_attention``."""

from liger_export.onnx_functions.portable.nodes import FLOAT, cast, number, numbers, reshape, transpose
from liger_export.onnx_functions.portable.recurrence import (
    decays,
    next_state,
    one_token,
    query_by_chunk,
    read_keys,
    read_values,
    tokens_from_chunks,
)
from liger_export.onnx_functions.portable.sizes import Sizes
from liger_export.onnx_functions.portable.snippets import heads_and_positions, log_gate, mixed, zero_padding
from liger_export.onnx_functions.portable.window import attention

__all__ = ["gsa"]


def gsa(sizes: Sizes) -> str:
    """Gated slot attention (arXiv 2409.07146, section 3): two passes over M slots with a softmax between them."""
    width, slots, kv_heads = sizes.head_dim, sizes.num_slots, sizes.num_key_value_heads
    # s = 1 - exp g = tanh(-g / 2) (1 + exp g): g is small, and 1 - exp g would cancel.
    slot_gates = f"""
    {reshape("key_pools", "wide_key", kv_heads, sizes.length, slots, width // slots)}
    {numbers("pool_axis", [3])}
    pooled = ReduceMean <keepdims = 0> (key_pools, pool_axis)
    {log_gate("open_gate", "pooled", sizes.gate_normalizer)}
    {zero_padding("log_gate", "open_gate", sizes)}
    {number("minus_half", -0.5)}
    {number("all", 1.0)}
    half_gate = Mul (log_gate, minus_half)
    half_tanh = Tanh (half_gate)
    kept = Exp (log_gate)
    kept_and_one = Add (kept, all)
    strength = Mul (half_tanh, kept_and_one)
    {cast("wide_value", "value_heads", FLOAT)}
    {zero_padding("blanked_key", "wide_key", sizes)}
    {zero_padding("blanked_value", "wide_value", sizes)}"""
    passes = _one_token(sizes) if sizes.length == 1 else _many_tokens(sizes)
    return heads_and_positions(sizes) + slot_gates + passes + attention(sizes, "window") + mixed(sizes)


def _one_token(sizes: Sizes) -> str:
    width, slots, kv_heads = sizes.head_dim, sizes.num_slots, sizes.num_key_value_heads
    return f"""
    {one_token("strength", "blanked_key", "slot_key", slots, width, kv_heads)}
    {one_token("strength", "blanked_value", "slot_value", slots, width, kv_heads)}
    {reshape("grouped_query", "wide_query", 1, kv_heads, sizes.num_queries_per_kv, width)}
    {transpose("slot_columns", "next_slot_key", 0, 1, 3, 2)}
    logits = MatMul (grouped_query, slot_columns)
    slot_query = Softmax <axis = -1> (logits)
    read = MatMul (slot_query, next_slot_value)
    {reshape("recurrent", "read", 1, 1, sizes.num_heads * width)}"""


def _many_tokens(sizes: Sizes) -> str:
    width, slots = sizes.head_dim, sizes.num_slots
    between_passes = """
    slot_query = Softmax <axis = -1> (logits)"""
    return (
        decays(sizes, slots)
        + query_by_chunk("chunk_query", "wide_query", sizes, width)
        + next_state(sizes, "strength", "blanked_key", "slot_key", slots, width)
        + read_values("chunk_query", "slot_key", "logits", sizes, slots, width)
        + between_passes
        + next_state(sizes, "strength", "blanked_value", "slot_value", slots, width)
        + read_keys("slot_query", "slot_value", "read", sizes, slots, width)
        + tokens_from_chunks("recurrent", "read", sizes, width)
    )
