"""The gated recurrence of portable bodies: one token, or many in chunked matrix form.

Reference: ``naive_gla_recurrence``. The chunkwise form of arXiv 2312.06635, section 4.2, with every exponent a sum of
the gates between two tokens, taken by a product with zeros and ones: never above 0, and no digits are lost in a
difference of two cumulative sums. Sub-chunks of 16 tokens run in parallel, and so do the states that enter them.
"""

import numpy as np

from liger_export.onnx_functions.portable.text import SUB_CHUNK, Sizes, matrix, numbers, reshape, transpose

__all__ = ["advance", "decays", "one_token", "read_keys", "read_values", "tokens_of", "weighted_query"]


def one_token(key: str, value: str, state: str, keys: int, values: int, groups: int) -> str:
    """S = exp(g) S + k v^T for T = 1; gives ``next_{state}`` [1, G, K, V]. Reads ``log_gate`` [G, 1, K]."""
    return f"""
    {state}_decay_flat = Exp (log_gate)
    {reshape(f"{state}_decay", f"{state}_decay_flat", 1, groups, keys, 1)}
    {reshape(f"{state}_key", key, 1, groups, keys, 1)}
    {reshape(f"{state}_value", value, 1, groups, 1, values)}
    {state}_kept = Mul ({state}, {state}_decay)
    {state}_added = Mul ({state}_key, {state}_value)
    next_{state} = Add ({state}_kept, {state}_added)"""


def decays(sizes: Sizes, keys: int) -> str:
    """Everything that the gates ``log_gate`` [G, T, K], zero at padding, say about T tokens.

    Gives ``pair_decay`` [G, N, C (to), C (from), K], 0 where "from" comes later; ``decay_since`` [G, N, C, K], from the
    sub-chunk's start up to each token, itself included; ``decay_until`` [G, N, C, K], after it to the sub-chunk's end;
    ``entry_weights`` [G, K, N + 1, N + 1], by which states and what sub-chunks add make the next states.
    """
    count, chunk, groups = sizes.sub_chunks, SUB_CHUNK, sizes.groups
    to, source, between = np.ogrid[:chunk, :chunk, :chunk]
    until, since, inside = np.ogrid[: count + 1, : count + 1, :count]
    order = np.tri(chunk, dtype=np.bool_)
    states = (count + 1) ** 2
    return f"""
    {reshape("gate_chunks", "log_gate", groups, count, chunk, keys)}
    {matrix("pairs", ((source < between) & (between <= to)).reshape(chunk * chunk, chunk))}
    {matrix("up_to", order)}
    {matrix("later", ~order)}
    {matrix("seen_pairs", order.reshape(chunk, chunk, 1))}
    {matrix("spans", ((since <= inside) & (inside < until)).reshape(states, count))}
    {matrix("seen_spans", np.tri(count + 1, dtype=np.bool_).reshape(states, 1))}
    {numbers("chunk_axis", [2])}
    pair_gates = MatMul (pairs, gate_chunks)
    pair_powers = Exp (pair_gates)
    {reshape("pair_square", "pair_powers", groups, count, chunk, chunk, keys)}
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
    {reshape("entry_weights", "span_decay_by_key", groups, keys, count + 1, count + 1)}"""


def advance(sizes: Sizes, key: str, value: str, state: str, keys: int, values: int) -> str:
    """Give ``{state}_entering`` [G, N, K, V] and ``next_{state}``; also the key and value by sub-chunk.

    Args:
        sizes: of the body.
        key: name of [G, T, K], float32, zero at padding.
        value: name of [G, T, V], float32, zero at padding.
        state: name of the state [1, G, K, V].
        keys: K.
        values: V.
    """
    count, chunk, groups = sizes.sub_chunks, SUB_CHUNK, sizes.groups
    return f"""
    {reshape(f"{state}_keys", key, groups, count, chunk, keys)}
    {reshape(f"{state}_values", value, groups, count, chunk, values)}
    {state}_keys_left = Mul ({state}_keys, decay_until)
    {transpose(f"{state}_keys_left_t", f"{state}_keys_left", 0, 1, 3, 2)}
    {state}_added = MatMul ({state}_keys_left_t, {state}_values)
    {reshape(f"{state}_before", state, groups, 1, keys, values)}
    {state}_terms = Concat <axis = 1> ({state}_before, {state}_added)
    {transpose(f"{state}_terms_by_key", f"{state}_terms", 0, 2, 1, 3)}
    {state}_all_by_key = MatMul (entry_weights, {state}_terms_by_key)
    {transpose(f"{state}_all", f"{state}_all_by_key", 0, 2, 1, 3)}
    {numbers(f"{state}_sizes", [count, 1])}
    {state}_entering, {state}_leaving = Split <axis = 1> ({state}_all, {state}_sizes)
    {reshape(f"next_{state}", f"{state}_leaving", 1, groups, keys, values)}"""


def weighted_query(name: str, source: str, sizes: Sizes, width: int) -> str:
    """Lay ``source`` [H, T, width] out as ``name`` [G, N, C, R, width]."""
    groups, repeats, count, chunk = sizes.groups, sizes.repeats, sizes.sub_chunks, SUB_CHUNK
    return reshape(f"{name}_split", source, groups, repeats, count, chunk, width) + transpose(
        name, f"{name}_split", 0, 2, 3, 1, 4
    )


def read_keys(query: str, state: str, output: str, sizes: Sizes, keys: int, values: int) -> str:
    """o = S^T q: give ``output`` [G, N, C * R, V] of ``query`` [G, N, C, R, K]."""
    count, chunk, groups, repeats = sizes.sub_chunks, SUB_CHUNK, sizes.groups, sizes.repeats
    return f"""
    {reshape(f"{state}_since", "decay_since", groups, count, chunk, 1, keys)}
    {state}_query_decayed = Mul ({query}, {state}_since)
    {reshape(f"{state}_query_rows", f"{state}_query_decayed", groups, count, chunk * repeats, keys)}
    {state}_carried = MatMul ({state}_query_rows, {state}_entering)
    {reshape(f"{state}_keys_from", f"{state}_keys", groups, count, 1, chunk, keys)}
    {state}_pairs = Mul (pair_decay, {state}_keys_from)
    {transpose(f"{state}_pairs_t", f"{state}_pairs", 0, 1, 2, 4, 3)}
    {state}_scores = MatMul ({query}, {state}_pairs_t)
    {reshape(f"{state}_score_rows", f"{state}_scores", groups, count, chunk * repeats, chunk)}
    {state}_within = MatMul ({state}_score_rows, {state}_values)
    {output} = Add ({state}_carried, {state}_within)"""


def read_values(query: str, state: str, output: str, sizes: Sizes, keys: int, values: int) -> str:
    """o = S q: give ``output`` [G, N, C, R, K] of ``query`` [G, N, C, R, V]."""
    count, chunk, groups, repeats = sizes.sub_chunks, SUB_CHUNK, sizes.groups, sizes.repeats
    return f"""
    {reshape(f"{state}_query_rows", query, groups, count, chunk * repeats, values)}
    {transpose(f"{state}_entering_t", f"{state}_entering", 0, 1, 3, 2)}
    {state}_carried_rows = MatMul ({state}_query_rows, {state}_entering_t)
    {reshape(f"{state}_carried_since", f"{state}_carried_rows", groups, count, chunk, repeats, keys)}
    {reshape(f"{state}_since", "decay_since", groups, count, chunk, 1, keys)}
    {state}_carried = Mul ({state}_carried_since, {state}_since)
    {transpose(f"{state}_values_t", f"{state}_values", 0, 1, 3, 2)}
    {state}_score_rows = MatMul ({state}_query_rows, {state}_values_t)
    {reshape(f"{state}_scores", f"{state}_score_rows", groups, count, chunk, repeats, chunk)}
    {reshape(f"{state}_keys_from", f"{state}_keys", groups, count, 1, chunk, keys)}
    {state}_pairs = Mul (pair_decay, {state}_keys_from)
    {state}_within = MatMul ({state}_scores, {state}_pairs)
    {output} = Add ({state}_carried, {state}_within)"""


def tokens_of(output: str, source: str, sizes: Sizes, width: int) -> str:
    """Give ``output`` [1, T, H * width] of [G, N, C, R, width] or its like."""
    count, chunk, groups, repeats = sizes.sub_chunks, SUB_CHUNK, sizes.groups, sizes.repeats
    return (
        reshape(f"{output}_chunks", source, groups, count, chunk, repeats, width)
        + transpose(f"{output}_tokens", f"{output}_chunks", 1, 2, 0, 3, 4)
        + reshape(output, f"{output}_tokens", 1, sizes.length, sizes.heads * width)
    )
