"""The gated recurrence of portable bodies, for one token and, in chunks, for many.

Reference: ``naive_gla_recurrence``. Many tokens use the chunkwise form of arXiv 2312.06635, section 4.2. Every exponent
is a sum of the gates between two tokens, computed as a product with a matrix of zeros and ones: it never exceeds 0, and
no digits cancel as in a difference of cumulative sums. Chunks run in parallel, and so do the states that enter them.
"""

import numpy as np

from liger_export.onnx_functions.portable.nodes import matrix, numbers, reshape, transpose
from liger_export.onnx_functions.portable.sizes import CHUNK, Sizes

__all__ = ["decays", "next_state", "one_token", "query_by_chunk", "read_keys", "read_values", "tokens_from_chunks"]


def one_token(key: str, value: str, state: str, keys: int, values: int, kv_heads: int) -> str:
    """Define ``next_{state}`` [1, G, K, V], S = exp(g) S + k v^T, for T = 1. Reads ``log_gate`` [G, 1, K]."""
    return f"""
    {state}_decay_flat = Exp (log_gate)
    {reshape(f"{state}_decay", f"{state}_decay_flat", 1, kv_heads, keys, 1)}
    {reshape(f"{state}_key", key, 1, kv_heads, keys, 1)}
    {reshape(f"{state}_value", value, 1, kv_heads, 1, values)}
    {state}_kept = Mul ({state}, {state}_decay)
    {state}_added = Mul ({state}_key, {state}_value)
    next_{state} = Add ({state}_kept, {state}_added)"""


def decays(sizes: Sizes, keys: int) -> str:
    """Define every decay that T tokens need. Reads ``log_gate`` [G, T, K], zero at padding.

    - ``pair_decay`` [G, N, C (to), C (from), K], between two tokens of a chunk; 0 where "from" comes later;
    - ``decay_since`` [G, N, C, K], from the chunk's start through each token;
    - ``decay_until`` [G, N, C, K], from after each token to the chunk's end;
    - ``entry_weights`` [G, K, N + 1, N + 1], from the initial state and each chunk's contribution to each chunk's
      entering state and the final one.
    """
    count, chunk, kv_heads = sizes.num_chunks, CHUNK, sizes.num_key_value_heads
    to, source, between = np.ogrid[:chunk, :chunk, :chunk]
    until, since, inside = np.ogrid[: count + 1, : count + 1, :count]
    order = np.tri(chunk, dtype=np.bool_)
    states = (count + 1) ** 2
    return f"""
    {reshape("gate_chunks", "log_gate", kv_heads, count, chunk, keys)}
    {matrix("pairs", ((source < between) & (between <= to)).reshape(chunk * chunk, chunk))}
    {matrix("up_to", order)}
    {matrix("later", ~order)}
    {matrix("seen_pairs", order.reshape(chunk, chunk, 1))}
    {matrix("spans", ((since <= inside) & (inside < until)).reshape(states, count))}
    {matrix("seen_spans", np.tri(count + 1, dtype=np.bool_).reshape(states, 1))}
    {numbers("chunk_axis", [2])}
    pair_gates = MatMul (pairs, gate_chunks)
    pair_powers = Exp (pair_gates)
    {reshape("pair_square", "pair_powers", kv_heads, count, chunk, chunk, keys)}
    pair_decay = Mul (pair_square, seen_pairs)
    gates_since = MatMul (up_to, gate_chunks)
    decay_since = Exp (gates_since)
    gates_until = MatMul (later, gate_chunks)
    decay_until = Exp (gates_until)
    chunk_gates = ReduceSum <keepdims = 0> (gate_chunks, chunk_axis)
    span_gates = MatMul (spans, chunk_gates)
    span_powers = Exp (span_gates)
    span_decay = Mul (span_powers, seen_spans)
    {transpose("span_decay_by_key", "span_decay", 0, 2, 1)}
    {reshape("entry_weights", "span_decay_by_key", kv_heads, keys, count + 1, count + 1)}"""


def next_state(sizes: Sizes, key: str, value: str, state: str, keys: int, values: int) -> str:
    """Define ``{state}_entering`` [G, N, K, V], ``next_{state}``, and key and value by chunk. Reads ``decays``.

    Args:
        sizes: of the body.
        key: name of [G, T, K], float32, zero at padding.
        value: name of [G, T, V], float32, zero at padding.
        state: name of the state [1, G, K, V].
        keys: K, the key's width.
        values: V, the value's width.
    """
    count, chunk, kv_heads = sizes.num_chunks, CHUNK, sizes.num_key_value_heads
    return f"""
    {reshape(f"{state}_keys", key, kv_heads, count, chunk, keys)}
    {reshape(f"{state}_values", value, kv_heads, count, chunk, values)}
    {state}_keys_left = Mul ({state}_keys, decay_until)
    {transpose(f"{state}_keys_left_t", f"{state}_keys_left", 0, 1, 3, 2)}
    {state}_added = MatMul ({state}_keys_left_t, {state}_values)
    {reshape(f"{state}_before", state, kv_heads, 1, keys, values)}
    {state}_terms = Concat <axis = 1> ({state}_before, {state}_added)
    {transpose(f"{state}_terms_by_key", f"{state}_terms", 0, 2, 1, 3)}
    {state}_all_by_key = MatMul (entry_weights, {state}_terms_by_key)
    {transpose(f"{state}_all", f"{state}_all_by_key", 0, 2, 1, 3)}
    {numbers(f"{state}_sizes", [count, 1])}
    {state}_entering, {state}_leaving = Split <axis = 1> ({state}_all, {state}_sizes)
    {reshape(f"next_{state}", f"{state}_leaving", 1, kv_heads, keys, values)}"""


def query_by_chunk(name: str, source: str, sizes: Sizes, width: int) -> str:
    """Define ``name`` [G, N, C, R, width]: ``source`` [H, T, width] by key/value head and chunk."""
    kv_heads, queries_per_kv = sizes.num_key_value_heads, sizes.num_queries_per_kv
    count, chunk = sizes.num_chunks, CHUNK
    return reshape(f"{name}_split", source, kv_heads, queries_per_kv, count, chunk, width) + transpose(
        name, f"{name}_split", 0, 2, 3, 1, 4
    )


def read_keys(query: str, state: str, output: str, sizes: Sizes, keys: int, values: int) -> str:
    """Define ``output`` [G, N, C * R, V], o = S^T q, from ``query`` [G, N, C, R, K]."""
    kv_heads, queries_per_kv = sizes.num_key_value_heads, sizes.num_queries_per_kv
    count, chunk = sizes.num_chunks, CHUNK
    return f"""
    {reshape(f"{state}_since", "decay_since", kv_heads, count, chunk, 1, keys)}
    {state}_query_decayed = Mul ({query}, {state}_since)
    {reshape(f"{state}_query_rows", f"{state}_query_decayed", kv_heads, count, chunk * queries_per_kv, keys)}
    {state}_carried = MatMul ({state}_query_rows, {state}_entering)
    {reshape(f"{state}_keys_from", f"{state}_keys", kv_heads, count, 1, chunk, keys)}
    {state}_pairs = Mul (pair_decay, {state}_keys_from)
    {transpose(f"{state}_pairs_t", f"{state}_pairs", 0, 1, 2, 4, 3)}
    {state}_scores = MatMul ({query}, {state}_pairs_t)
    {reshape(f"{state}_score_rows", f"{state}_scores", kv_heads, count, chunk * queries_per_kv, chunk)}
    {state}_within = MatMul ({state}_score_rows, {state}_values)
    {output} = Add ({state}_carried, {state}_within)"""


def read_values(query: str, state: str, output: str, sizes: Sizes, keys: int, values: int) -> str:
    """Define ``output`` [G, N, C, R, K], o = S q, from ``query`` [G, N, C, R, V]."""
    kv_heads, queries_per_kv = sizes.num_key_value_heads, sizes.num_queries_per_kv
    count, chunk = sizes.num_chunks, CHUNK
    return f"""
    {reshape(f"{state}_query_rows", query, kv_heads, count, chunk * queries_per_kv, values)}
    {transpose(f"{state}_entering_t", f"{state}_entering", 0, 1, 3, 2)}
    {state}_carried_rows = MatMul ({state}_query_rows, {state}_entering_t)
    {reshape(f"{state}_carried_since", f"{state}_carried_rows", kv_heads, count, chunk, queries_per_kv, keys)}
    {reshape(f"{state}_since", "decay_since", kv_heads, count, chunk, 1, keys)}
    {state}_carried = Mul ({state}_carried_since, {state}_since)
    {transpose(f"{state}_values_t", f"{state}_values", 0, 1, 3, 2)}
    {state}_score_rows = MatMul ({state}_query_rows, {state}_values_t)
    {reshape(f"{state}_scores", f"{state}_score_rows", kv_heads, count, chunk, queries_per_kv, chunk)}
    {reshape(f"{state}_keys_from", f"{state}_keys", kv_heads, count, 1, chunk, keys)}
    {state}_pairs = Mul (pair_decay, {state}_keys_from)
    {state}_within = MatMul ({state}_scores, {state}_pairs)
    {output} = Add ({state}_carried, {state}_within)"""


def tokens_from_chunks(output: str, source: str, sizes: Sizes, width: int) -> str:
    """Define ``output`` [1, T, H * width]: ``source`` [G, N, C, R, width], or [G, N, C * R, width], by token."""
    kv_heads, queries_per_kv = sizes.num_key_value_heads, sizes.num_queries_per_kv
    count, chunk = sizes.num_chunks, CHUNK
    return (
        reshape(f"{output}_chunks", source, kv_heads, count, chunk, queries_per_kv, width)
        + transpose(f"{output}_tokens", f"{output}_chunks", 1, 2, 0, 3, 4)
        + reshape(output, f"{output}_tokens", 1, sizes.length, sizes.num_heads * width)
    )
