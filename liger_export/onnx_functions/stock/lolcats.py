"""LoLCATs: a softmax window, and linear attention to all older keys, under one denominator (arXiv 2410.10254).

Queries are split into blocks of C = min(T, W), each with the C + W rows of keys and values that it can see. With each
token one row leaves the window. Within a call these are the first C rows of every block, in order, starting W tokens
before the call. The linear terms are LinearAttention over these rows.
"""

from liger_export.onnx_functions.stock.snippets import ROTATE, SIZES

__all__ = ["LOLCATS_BODY"]

# Offsets are relative to the call's first token; a negative offset is a row of the past window. Rows of the past window
# from ``held`` on may hold anything and are set to zero; an offset before the first token wraps around to one of them.
INDEXES = """
    first = Constant <value = int64 {0}> ()
    step = Constant <value = int64 {1}> ()
    length = Shape <start = 1, end = 2> (query)
    block = Min (length, window_size)
    length_less_one = Sub (length, one)
    last_block = Div (length_less_one, block)
    blocks = Add (last_block, one)
    block_rows = Add (block, window_size)
    padded_length = Mul (blocks, block)
    padding = Sub (padded_length, length)
    row_count = Add (window_size, length)
    last_row = Sub (row_count, one)

    axis_1 = Constant <value = int64[1] {1}> ()
    outer_axes = Constant <value = int64[2] {1, 3}> ()
    seen_before = Gather <axis = 1> (position_ids, first)
    seen = Unsqueeze (seen_before, axis_1)
    held = Min (seen, window_size)
    past_rows = Range (first, window_size_scalar, step)
    is_held_row = Less (past_rows, held)
    is_held = Unsqueeze (is_held_row, outer_axes)

    block_scalar = Squeeze (block)
    blocks_scalar = Squeeze (blocks)
    block_rows_scalar = Squeeze (block_rows)
    in_block = Range (first, block_rows_scalar, step)
    block_numbers = Range (first, blocks_scalar, step)
    block_starts_row = Mul (block_numbers, block)
    block_starts = Unsqueeze (block_starts_row, axis_1)
    from_window = Sub (in_block, window_size)
    offset_table = Add (block_starts, from_window)
    offsets = Reshape (offset_table, rest)
    rows_if_past_wide = Add (offsets, held)
    is_row = GreaterOrEqual (rows_if_past_wide, zero)
    rows_if_past = Mod (rows_if_past_wide, window_size)
    rows_if_new_wide = Add (offsets, window_size)
    rows_if_new = Min (rows_if_new_wide, last_row)
    is_new = GreaterOrEqual (offsets, zero)
    visible_rows = Where (is_new, rows_if_new, rows_if_past)

    seen_after = Add (seen, length)
    held_after = Min (seen_after, window_size)
    until_kept = Sub (length, held_after)
    kept_offsets = Add (past_rows, until_kept)
    is_new_kept = GreaterOrEqual (kept_offsets, zero)
    kept_if_new = Add (kept_offsets, window_size)
    kept_if_past = Add (kept_offsets, held)
    kept_rows_wide = Where (is_new_kept, kept_if_new, kept_if_past)
    is_kept = Less (past_rows, held_after)
    zero_row = Sub (window_size, one)
    kept_rows = Where (is_kept, kept_rows_wide, zero_row)

    gather_axes = Constant <value = int64[2] {1, 3}> ()
    groups_shape = Concat <axis = 0> (one, groups, one, one)
    visible_column = Unsqueeze (visible_rows, gather_axes)
    visible_index = Expand (visible_column, groups_shape)
    kept_column = Unsqueeze (kept_rows, gather_axes)
    kept_index = Expand (kept_column, groups_shape)
    split_blocks = Concat <axis = 0> (zero, zero, blocks, block_rows, head_dim)
    last_two = Constant <value = int64[2] {0, 0}> ()
    row_axis = Constant <value = int64[1] {3}> ()
    token_axis = Constant <value = int64[1] {2}> ()
    split_leaving = Concat <axis = 0> (zero, zero, rest, head_dim)
"""


def _rows(kind: str, source: str) -> str:
    """Define ``{kind}_blocks`` [B, G, N, C + W, D], ``leaving_{kind}`` [B, G, T, D] and the next window state."""
    return f"""
    no_{kind}_scalar = Constant <value = float {{0.0}}> ()
    no_{kind} = CastLike (no_{kind}_scalar, {source})
    past_{kind} = Where (is_held, window_{kind}, no_{kind})
    {kind}_heads = Reshape ({source}, split_heads)
    new_{kind} = Transpose <perm = [0, 2, 1, 3]> ({kind}_heads)
    {kind}_rows = Concat <axis = 2> (past_{kind}, new_{kind})
    next_window_{kind} = GatherND <batch_dims = 2> ({kind}_rows, kept_index)
    visible_{kind} = GatherND <batch_dims = 2> ({kind}_rows, visible_index)
    wide_{kind} = Cast <to = 1> (visible_{kind})
    {kind}_blocks = Reshape (wide_{kind}, split_blocks)
    {kind}_first_rows = Slice ({kind}_blocks, zero, block, row_axis)
    {kind}_leaving_padded = Reshape ({kind}_first_rows, split_leaving)
    leaving_{kind} = Slice ({kind}_leaving_padded, zero, length, token_axis)
"""


def _features(of: str, rows: str, weights: str, order: str) -> str:
    """Define ``{of}_features`` [B, T, H * F]: softmax(x A) and softmax(-x A), concatenated and at least 1e-12."""
    return f"""
    {of}_mapped = MatMul ({rows}, {weights})
    {of}_mapped_down = Neg ({of}_mapped)
    {of}_up = Softmax <axis = -1> ({of}_mapped)
    {of}_down = Softmax <axis = -1> ({of}_mapped_down)
    {of}_both = Concat <axis = -1> ({of}_up, {of}_down)
    {of}_least = Constant <value = float {{1e-12}}> ()
    {of}_clamped = Max ({of}_both, {of}_least)
    {of}_in_order = Transpose <perm = [{order}]> ({of}_clamped)
    {of}_features = Reshape ({of}_in_order, join_heads)
"""


QUERY = """
    wide_query = Cast <to = 1> (rotated_query)
    query_heads = Reshape (wide_query, split_heads)
    query_by_head = Transpose <perm = [0, 2, 1, 3]> (query_heads)
    query_weights = Cast <to = 1> (query_map)
"""

# Reads wide_query; defines window_sum [B, T, H, D] and window_mass [B, T, H, 1], the sums of exp(score - m) over rows.
WINDOW_TERMS = """
    head_dim_float = Cast <to = 1> (head_dim)
    root = Sqrt (head_dim_float)
    scaled_query = Div (wide_query, root)
    pads = Concat <axis = 0> (zero, zero, zero, zero, padding, zero)
    padded_query = Pad (scaled_query, pads)
    query_block_shape = Concat <axis = 0> (zero, rest, block, groups, repeats, head_dim)
    query_split = Reshape (padded_query, query_block_shape)
    query_blocks = Transpose <perm = [0, 3, 1, 4, 2, 5]> (query_split)
    leading = Constant <value = int64[3] {0, 0, 0}> ()
    block_queries_shape = Concat <axis = 0> (leading, rest, head_dim)
    block_queries = Reshape (query_blocks, block_queries_shape)
    score_rows = com.microsoft.FusedMatMul <transB = 1> (block_queries, key_blocks)
    score_shape = Concat <axis = 0> (leading, repeats, block, block_rows)
    every_score = Reshape (score_rows, score_shape)

    block_row = Range (first, block_scalar, step)
    query_in_block = Unsqueeze (block_row, axis_1)
    newest_in_block = Add (query_in_block, window_size)
    is_within = Greater (in_block, query_in_block)
    is_causal = LessOrEqual (in_block, newest_in_block)
    is_in_band = And (is_within, is_causal)
    row_mask_shape = Concat <axis = 0> (zero, one, blocks, one, one, block_rows)
    row_mask = Reshape (is_row, row_mask_shape)
    is_visible = And (is_in_band, row_mask)
    lowest = Constant <value = float {-3.4e38}> ()
    scores = Where (is_visible, every_score, lowest)
    highest = ReduceMax <keepdims = 1> (scores, rest)
    below_highest = Sub (scores, highest)
    terms = Exp (below_highest)
    mass_blocks = ReduceSum <keepdims = 1> (terms, rest)
    term_rows_shape = Concat <axis = 0> (leading, rest, block_rows)
    term_rows = Reshape (terms, term_rows_shape)
    sum_rows = MatMul (term_rows, value_blocks)
    sum_shape = Concat <axis = 0> (leading, repeats, block, head_dim)
    sum_blocks = Reshape (sum_rows, sum_shape)

    sum_in_order = Transpose <perm = [0, 2, 4, 1, 3, 5]> (sum_blocks)
    mass_in_order = Transpose <perm = [0, 2, 4, 1, 3, 5]> (mass_blocks)
    packed_sum = Concat <axis = 0> (zero, rest, heads, head_dim)
    packed_mass = Concat <axis = 0> (zero, rest, heads, one)
    sum_padded = Reshape (sum_in_order, packed_sum)
    mass_padded = Reshape (mass_in_order, packed_mass)
    window_sum = Slice (sum_padded, zero, length, one)
    window_mass = Slice (mass_padded, zero, length, one)
"""

LEAVING = """
    key_map_wide = Cast <to = 1> (key_map)
    map_shape = Concat <axis = 0> (groups, repeats, head_dim, rest)
    key_weights = Reshape (key_map_wide, map_shape)
    leaving_key_group = Unsqueeze (leaving_key, token_axis)
"""

# Rows without a token have value 0 and mass 0, so their features do not matter.
LINEAR_TERMS = """
    leaving_value_tokens = Transpose <perm = [0, 2, 1, 3]> (leaving_value)
    leaving_value_group = Unsqueeze (leaving_value_tokens, row_axis)
    repeat_shape = Concat <axis = 0> (one, one, one, repeats, one)
    leaving_value_heads = Expand (leaving_value_group, repeat_shape)
    linear_value = Reshape (leaving_value_heads, join_heads)
    mask_blocks_shape = Concat <axis = 0> (zero, blocks, block_rows)
    mask_blocks = Reshape (is_row, mask_blocks_shape)
    mask_first_rows = Slice (mask_blocks, zero, block, token_axis)
    mask_shape = Concat <axis = 0> (zero, rest, one)
    mask_padded = Reshape (mask_first_rows, mask_shape)
    is_leaving = Slice (mask_padded, zero, length, one)
    leaving_mass = Cast <to = 1> (is_leaving)
    mass_heads_shape = Concat <axis = 0> (one, one, heads)
    linear_mass_value = Expand (leaving_mass, mass_heads_shape)

    linear_sum_packed, next_recurrent_state = com.microsoft.LinearAttention
        <update_rule = "linear", scale = 1.0, q_num_heads: int = @num_heads, kv_num_heads: int = @num_heads>
        (query_features, key_features, linear_value, recurrent_state)
    normalizer_column = Unsqueeze (normalizer, row_axis)
    linear_mass_packed, next_normalizer_column = com.microsoft.LinearAttention
        <update_rule = "linear", scale = 1.0, q_num_heads: int = @num_heads, kv_num_heads: int = @num_heads>
        (query_features, key_features, linear_mass_value, normalizer_column)
    next_normalizer = Squeeze (next_normalizer_column, row_axis)
    linear_sum = Reshape (linear_sum_packed, packed_sum)
    linear_mass = Reshape (linear_mass_packed, packed_mass)

    wide_factors = Cast <to = 1> (window_factors)
    factor_column = Unsqueeze (wide_factors, axis_1)
    factors = Sigmoid (factor_column)
    window_sum_share = Mul (window_sum, factors)
    window_mass_share = Mul (window_mass, factors)
    sum = Add (window_sum_share, linear_sum)
    mass = Add (window_mass_share, linear_mass)
    mean = Div (sum, mass)
    packed_mean = Reshape (mean, join_heads)
    output = CastLike (packed_mean, query)
"""

LOLCATS_BODY = (
    SIZES
    + ROTATE
    + INDEXES
    + _rows("key", "rotated_key")
    + _rows("value", "value")
    + QUERY
    + _features("query", "query_by_head", "query_weights", "0, 2, 1, 3")
    + WINDOW_TERMS
    + LEAVING
    + _features("key", "leaving_key_group", "key_weights", "0, 3, 1, 2, 4")
    + LINEAR_TERMS
)
