"""Softmax attention in the window in ai.onnx operators: what ``GroupQueryAttention`` with a sliding cache computes.

For engines whose GroupQueryAttention lacks ``sliding_window_cache``. One sequence at a time; any number of tokens.
"""

from onnx import FunctionProto, parser

__all__ = ["WINDOW_ATTENTION", "window_attention_function"]

WINDOW_ATTENTION = "WindowAttention"

SIZES = """
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    rest = Constant <value = int64[1] {-1}> ()
    groups_scalar = Constant <value_int: int = @kv_num_heads> ()
    groups = Reshape (groups_scalar, one)
    window_size_scalar = Constant <value_int: int = @local_window_size> ()
    window_size = Reshape (window_size_scalar, one)
    head_dim = Shape <start = 3, end = 4> (window_key)
"""

# Positions are those of the call's only sequence. Rows of the past window from ``held`` on may hold anything. Reads
# SIZES and defines
# - ``mask`` [T, W + T], float32: 0 where a row is in a token's window, and otherwise the lowest number;
# - ``is_held`` [W, 1], the rows of the past window that hold a token;
# - ``kept_rows`` [W], rows of the span (past window, then the call's tokens) that make the next window, and
#   ``is_kept`` [W, 1], false where that window has no token yet.
POSITIONS = """
    start = Constant <value = int64 {0}> ()
    step = Constant <value = int64 {1}> ()
    nowhere = Constant <value = int64 {-1099511627776}> ()
    positions = Reshape (position_ids, rest)
    length = Shape (positions)
    first = Gather <axis = 0> (positions, zero)
    after = Add (first, length)
    held = Min (first, window_size)
    rows = Range (start, window_size_scalar, step)
    is_held_row = Less (rows, held)
    is_held = Unsqueeze (is_held_row, one)
    before_past = Sub (first, held)
    past_rows = Add (rows, before_past)
    past_positions = Where (is_held_row, past_rows, nowhere)
    span_positions = Concat <axis = 0> (past_positions, positions)
    position_column = Unsqueeze (positions, one)
    distance = Sub (position_column, span_positions)
    is_behind = GreaterOrEqual (distance, zero)
    is_near = Less (distance, window_size)
    is_visible = And (is_behind, is_near)
    open = Constant <value = float {0.0}> ()
    lowest = Constant <value = float {-3.4e38}> ()
    mask = Where (is_visible, open, lowest)

    held_after = Min (after, window_size)
    before_kept = Sub (after, held_after)
    kept_positions = Add (rows, before_kept)
    is_kept_row = Less (rows, held_after)
    is_kept = Unsqueeze (is_kept_row, one)
    is_kept_past = Less (kept_positions, first)
    row_if_past = Sub (kept_positions, before_past)
    place_in_call = Sub (kept_positions, first)
    row_if_new = Add (place_in_call, window_size)
    kept_row = Where (is_kept_past, row_if_past, row_if_new)
    kept_rows = Where (is_kept_row, kept_row, zero)
"""


def _span(kind: str) -> str:
    """Define ``span_{kind}`` [1, G, W + T, D] and ``next_window_{kind}`` [1, G, W, D]."""
    return f"""
    {kind}_tokens = Reshape ({kind}, split_heads)
    {kind}_heads = Transpose <perm = [0, 2, 1, 3]> ({kind}_tokens)
    past_{kind} = Where (is_held, window_{kind}, blank)
    span_{kind} = Concat <axis = 2> (past_{kind}, {kind}_heads)
    taken_{kind} = Gather <axis = 2> (span_{kind}, kept_rows)
    next_window_{kind} = Where (is_kept, taken_{kind}, blank)
"""


ATTENTION = f"""
    blank = CastLike (open, value)
    split_heads = Concat <axis = 0> (one, rest, groups, head_dim)
    {_span("key")}
    {_span("value")}
    split_queries = Concat <axis = 0> (length, groups, rest, head_dim)
    query_tokens = Reshape (query, split_queries)
    query_heads = Transpose <perm = [1, 2, 0, 3]> (query_tokens)
    join_queries = Concat <axis = 0> (one, groups, rest, head_dim)
    queries = Reshape (query_heads, join_queries)
    keys = Transpose <perm = [0, 1, 3, 2]> (span_key)
    products = MatMul (queries, keys)
    wide_products = Cast <to = 1> (products)
    head_dim_float = Cast <to = 1> (head_dim)
    root = Sqrt (head_dim_float)
    scaled = Div (wide_products, root)
    row_count = Shape (span_positions)
    split_scores = Concat <axis = 0> (groups, rest, length, row_count)
    scores = Reshape (scaled, split_scores)
    masked = Add (scores, mask)
    wide_weights = Softmax <axis = -1> (masked)
    split_weights = CastLike (wide_weights, value)
    join_scores = Concat <axis = 0> (one, groups, rest, row_count)
    weights = Reshape (split_weights, join_scores)
    sums = MatMul (weights, span_value)
    split_sums = Concat <axis = 0> (groups, rest, length, head_dim)
    sums_by_head = Reshape (sums, split_sums)
    sums_by_token = Transpose <perm = [2, 0, 1, 3]> (sums_by_head)
    join_heads = Concat <axis = 0> (one, length, rest)
    output = Reshape (sums_by_token, join_heads)
"""


def window_attention_function() -> FunctionProto:
    """The operator as a model-local function, with the names of GroupQueryAttention's attributes.

    It reads the query [1, T, H * D] and the key [1, T, G * D], both rotated, the value [1, T, G * D], the past window's
    keys and values [1, G, W, D], and the position ids [1, T].
    """
    return parser.parse_function(
        '<domain: "liger", opset_import: ["" : 23]>\n'
        f"{WINDOW_ATTENTION} <kv_num_heads, local_window_size> "
        "(query, key, value, window_key, window_value, position_ids) => (output, next_window_key, next_window_value)\n"
        f"{{{SIZES}{POSITIONS}{ATTENTION}}}\n"
    )
