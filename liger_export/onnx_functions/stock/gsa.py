"""Liger-GSA: gated slots, two passes over M slots with a softmax between them (arXiv 2409.07146, section 3).

The second pass contracts the slots, along which the state decays: it is LinearAttention. The first pass outputs the
slots, which no stock operator does. For one token it is computed directly, for more in chunks
(``benchmarks/gsa_forms.py`` times the alternatives).
"""

from liger_export.onnx_functions.stock.snippets import MIX, SIZES, gate, window_attention

__all__ = ["CHUNK", "GSA_BODY", "SLOT_SIZES", "chunks", "one_token"]

CHUNK = 16  # tokens

# Reads SIZES; defines the number of slots and the shape of the logits.
SLOT_SIZES = """
    slots_scalar = Constant <value_int: int = @num_slots> ()
    slots = Reshape (slots_scalar, one)
    slot_width = Mul (heads, slots)
    packed_logits = Concat <axis = 0> (zero, rest, slot_width)
"""

# Defines gate, decay and strength s = 1 - exp g, computed as tanh(-g / 2) (1 + exp g): g is small, and 1 - exp g
# would cancel.
SLOT_GATES = f"""
    wide_query = Cast <to = 1> (query)
    wide_key = Cast <to = 1> (key)
    wide_value = Cast <to = 1> (value)
    slots_in_all = Mul (groups, slots)
    pools = Concat <axis = 0> (zero, zero, slots_in_all, rest)
    key_pools = Reshape (wide_key, pools)
    pooled = ReduceMean <keepdims = 0> (key_pools, rest)
    {gate("pooled")}
    minus_half = Constant <value = float {{-0.5}}> ()
    half_gate = Mul (gate, minus_half)
    half_tanh = Tanh (half_gate)
    decay = Exp (gate)
    all_kept = Constant <value = float {{1.0}}> ()
    decay_plus_one = Add (decay, all_kept)
    strength = Mul (half_tanh, decay_plus_one)
"""


def one_token(logits: str, next_slot_key: str) -> str:
    """Define K = exp(g) K + s k^T and the logits K q, for T = 1."""
    return f"""
    token_query_shape = Concat <axis = 0> (zero, groups, repeats, head_dim)
    token_key_shape = Concat <axis = 0> (zero, groups, one, head_dim)
    token_slot_shape = Concat <axis = 0> (zero, groups, slots, one)
    token_query = Reshape (wide_query, token_query_shape)
    token_key = Reshape (wide_key, token_key_shape)
    token_strength = Reshape (strength, token_slot_shape)
    token_decay_flat = Exp (gate)
    token_decay = Reshape (token_decay_flat, token_slot_shape)
    token_kept = Mul (slot_key, token_decay)
    token_added = Mul (token_strength, token_key)
    {next_slot_key} = Add (token_kept, token_added)
    token_logits = com.microsoft.FusedMatMul <transB = 1> (token_query, {next_slot_key})
    {logits} = Reshape (token_logits, packed_logits)
"""


def _padded_chunks(name: str, source: str, shape: str, order: str) -> str:
    return f"""
    {name}_padded = Pad ({source}, pads)
    {name}_split = Reshape ({name}_padded, {shape})
    {name}_chunks = Transpose <perm = [{order}]> ({name}_split)"""


def chunks(logits: str, next_slot_key: str, size: int = CHUNK) -> str:
    """Define the same for any T, in N chunks of C = ``size`` tokens: tensors are [N, B, G, C, ...].

    Chunks run in parallel; only the state passes from chunk to chunk. Every decay is exp of a sum of gates, computed as
    a product with a matrix of zeros and ones: it never exceeds 1, and no digits cancel. Padding has gate 0 and
    strength 0, so it does not change the state.
    """
    return f"""
    chunk = Constant <value = int64[1] {{{size}}}> ()
    length = Shape <start = 1, end = 2> (query)
    negative_length = Neg (length)
    padding = Mod (negative_length, chunk)
    pads = Concat <axis = 0> (zero, zero, zero, zero, padding, zero)
    query_shape = Concat <axis = 0> (zero, rest, chunk, groups, repeats, head_dim)
    key_shape = Concat <axis = 0> (zero, rest, chunk, groups, head_dim)
    slot_shape = Concat <axis = 0> (zero, rest, chunk, groups, slots)
    {_padded_chunks("query", "wide_query", "query_shape", "1, 0, 3, 2, 4, 5")}
    {_padded_chunks("key", "wide_key", "key_shape", "1, 0, 3, 2, 4")}
    {_padded_chunks("gate", "gate", "slot_shape", "1, 0, 3, 2, 4")}
    {_padded_chunks("strength", "strength", "slot_shape", "1, 0, 3, 2, 4")}

    first = Constant <value = int64 {{0}}> ()
    step = Constant <value = int64 {{1}}> ()
    end = Constant <value = int64 {{{size}}}> ()
    axis_1 = Constant <value = int64[1] {{1}}> ()
    axis_2 = Constant <value = int64[1] {{2}}> ()
    axis_3 = Constant <value = int64[1] {{3}}> ()
    axis_4 = Constant <value = int64[1] {{4}}> ()
    token = Range (first, end, step)
    token_row = Unsqueeze (token, axis_1)
    token_plane = Unsqueeze (token_row, axis_2)
    is_up_to = LessOrEqual (token, token_row)
    is_after = Greater (token, token_row)
    up_to = Cast <to = 1> (is_up_to)
    after = Cast <to = 1> (is_after)
    is_seen = LessOrEqual (token, token_plane)
    is_between = And (is_seen, is_after)
    between_cube = Cast <to = 1> (is_between)
    between_shape = Concat <axis = 0> (rest, chunk)
    between = Reshape (between_cube, between_shape)

    leading = Constant <value = int64[3] {{0, 0, 0}}> ()
    query_rows_shape = Concat <axis = 0> (leading, rest, head_dim)
    query_rows = Reshape (query_chunks, query_rows_shape)
    score_rows = com.microsoft.FusedMatMul <transB = 1> (query_rows, key_chunks)
    score_shape = Concat <axis = 0> (leading, chunk, rest, chunk)
    every_score = Reshape (score_rows, score_shape)
    no_score = Constant <value = float {{0.0}}> ()
    scores = Where (is_seen, every_score, no_score)
    pair_gates = MatMul (between, gate_chunks)
    pair_decay_rows = Exp (pair_gates)
    pair_shape = Concat <axis = 0> (leading, chunk, chunk, slots)
    pair_decays = Reshape (pair_decay_rows, pair_shape)
    strength_from = Unsqueeze (strength_chunks, axis_3)
    pair_weights = Mul (pair_decays, strength_from)
    logits_within = MatMul (scores, pair_weights)

    gates_up_to = MatMul (up_to, gate_chunks)
    gates_after = MatMul (after, gate_chunks)
    decay_up_to = Exp (gates_up_to)
    decay_after = Exp (gates_after)
    last_token = Constant <value = int64 {{-1}}> ()
    chunk_decay_row = Gather <axis = 3> (decay_up_to, last_token)
    chunk_decay = Unsqueeze (chunk_decay_row, axis_4)
    strength_left = Mul (strength_chunks, decay_after)
    chunk_added = com.microsoft.FusedMatMul <transA = 1> (strength_left, key_chunks)
    {next_slot_key}, entering = Scan <num_scan_inputs = 2, body = advance (held, decay_here, added_here)
        => (next_held, entered)
    {{
        held_kept = Mul (held, decay_here)
        next_held = Add (held_kept, added_here)
        entered = Identity (held)
    }}> (slot_key, chunk_decay, chunk_added)
    carried_rows = com.microsoft.FusedMatMul <transB = 1> (query_rows, entering)
    carried_shape = Concat <axis = 0> (leading, chunk, rest, slots)
    carried = Reshape (carried_rows, carried_shape)
    decay_carried = Unsqueeze (decay_up_to, axis_4)
    logits_carried = Mul (carried, decay_carried)
    logits_chunks = Add (logits_within, logits_carried)
    logits_split = Transpose <perm = [1, 0, 3, 2, 4, 5]> (logits_chunks)
    logits_padded = Reshape (logits_split, packed_logits)
    {logits} = Slice (logits_padded, zero, length, one)
"""


FIRST_PASS = f"""
    call_length = Shape <start = 1, end = 2> (query)
    is_step = Equal (call_length, one)
    logits, next_slot_key = If (is_step) <
        then_branch = step () => (step_logits, step_slot_key) {{{one_token("step_logits", "step_slot_key")}}},
        else_branch = call () => (call_logits, call_slot_key) {{{chunks("call_logits", "call_slot_key")}}}
    >
"""

SECOND_PASS = """
    split_slots = Concat <axis = 0> (zero, zero, rest, slots)
    logits_heads = Reshape (logits, split_slots)
    slot_softmax = Softmax <axis = -1> (logits_heads)
    slot_query = Reshape (slot_softmax, join_heads)
    wide_recurrent, next_slot_value = com.microsoft.LinearAttention
        <update_rule = "gated", scale: float = @recurrent_weight,
         q_num_heads: int = @num_heads, kv_num_heads: int = @num_key_value_heads>
        (slot_query, strength, wide_value, slot_value, gate)
    recurrent = CastLike (wide_recurrent, query)
"""

GSA_BODY = SIZES + SLOT_SIZES + SLOT_GATES + FIRST_PASS + SECOND_PASS + window_attention("window") + MIX
