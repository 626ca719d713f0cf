"""LoLCATs as a portable body (arXiv 2410.10254, section 3.2). Reference: ``naive_lolcats_attention``."""

from liger_export.onnx_functions.portable.nodes import FLOAT, cast, number, numbers, reshape, transpose
from liger_export.onnx_functions.portable.sizes import Sizes
from liger_export.onnx_functions.portable.snippets import heads_and_positions
from liger_export.onnx_functions.portable.window import moved_window, span

__all__ = ["lolcats"]

FEATURE_FLOOR = 1e-12


def lolcats(sizes: Sizes) -> str:
    """Define y = (sum_window a v + phi(q)^T S) / (sum_window a + phi(q)^T z) per query head, in float32."""
    common = heads_and_positions(sizes) + _learned(sizes)
    return common + (_one_token(sizes) if sizes.length == 1 else _many_tokens(sizes))


def _learned(sizes: Sizes) -> str:
    return f"""
    {cast("wide_query_map", "query_map", FLOAT)}
    {cast("wide_key_map", "key_map", FLOAT)}
    {cast("wide_factors", "window_factors", FLOAT)}
    {reshape("factor_column", "wide_factors", sizes.num_heads, 1, 1)}
    factors = Sigmoid (factor_column)
    {cast("wide_rotated_query", "rotated_query", FLOAT)}
    {cast("unscaled_query", "query_turned", sizes.activation)}
    {cast("wide_unscaled_query", "unscaled_query", FLOAT)}
    {_features("query", "wide_unscaled_query", "wide_query_map")}"""


def _features(of: str, rows: str, weights: str) -> str:
    """Define ``{of}_features`` [H, T, F]: softmax(x A) and softmax(-x A), concatenated and at least 1e-12."""
    return f"""
    {of}_mapped = MatMul ({rows}, {weights})
    {of}_mapped_down = Neg ({of}_mapped)
    {of}_up = Softmax <axis = -1> ({of}_mapped)
    {of}_down = Softmax <axis = -1> ({of}_mapped_down)
    {of}_both = Concat <axis = -1> ({of}_up, {of}_down)
    {number(f"{of}_floor", FEATURE_FLOOR)}
    {of}_features = Max ({of}_both, {of}_floor)"""


def _by_head(name: str, source: str, sizes: Sizes, rows: int) -> str:
    """Define ``name``: ``source`` [G, rows, D], repeated for each query head, in float32 [H, rows, D]."""
    kv_heads, queries_per_kv, width = sizes.num_key_value_heads, sizes.num_queries_per_kv, sizes.head_dim
    return f"""
    {cast(f"{name}_wide", source, FLOAT)}
    {reshape(f"{name}_grouped", f"{name}_wide", kv_heads, 1, rows, width)}
    {numbers(f"{name}_repeated_shape", [kv_heads, queries_per_kv, rows, width])}
    {name}_repeated = Expand ({name}_grouped, {name}_repeated_shape)
    {reshape(name, f"{name}_repeated", sizes.num_heads, rows, width)}"""


def _window_terms(visible: str) -> str:
    """Define ``terms`` = sigmoid(w) exp(q.k / sqrt(D) - m) where visible, from ``every_score`` [H, T, rows]."""
    return f"""
    {number("lowest", -3.4e38)}
    scores = Where ({visible}, every_score, lowest)
    {numbers("row_axis_last", [-1])}
    highest = ReduceMax <keepdims = 1> (scores, row_axis_last)
    below_highest = Sub (scores, highest)
    powers = Exp (below_highest)
    all_terms = Mul (powers, factors)
    {number("no_term", 0.0)}
    terms = Where ({visible}, all_terms, no_term)"""


def _sums(sizes: Sizes, weights: str, rows: str) -> str:
    """Define ``output``: rows summed by weight, plus the state read by the features, over the sum of all weights."""
    length, width = sizes.length, sizes.head_dim
    return f"""
    carried_sum = MatMul (query_features, entering_sum)
    carried_mass = MatMul (query_features, entering_mass)
    row_sum = MatMul ({weights}, {rows})
    row_mass = ReduceSum <keepdims = 1> ({weights}, row_axis_last)
    sum = Add (row_sum, carried_sum)
    open_mass = Add (row_mass, carried_mass)
    {number("all", 1.0)}
    {reshape("token_rows", "is_token", length, 1)}
    mass = Where (token_rows, open_mass, all)
    mean = Div (sum, mass)
    {transpose("mean_tokens", "mean", 1, 0, 2)}
    {reshape("wide_output", "mean_tokens", 1, length, sizes.num_heads * width)}
    {cast("output", "wide_output", sizes.activation)}"""


def _next_state(leaving_features: str, leaving_values: str, sizes: Sizes) -> str:
    """Define the next state: ``state_sum`` and ``state_mass`` plus the rows that leave the window."""
    return f"""
    {transpose("leaving_columns", leaving_features, 0, 2, 1)}
    leaving_sum = MatMul (leaving_columns, {leaving_values})
    after_sum = Add (state_sum, leaving_sum)
    {numbers("feature_rows", [2])}
    leaving_mass = ReduceSum <keepdims = 1> (leaving_columns, feature_rows)
    after_mass = Add (state_mass, leaving_mass)
    {reshape("next_recurrent_state", "after_sum", 1, sizes.num_heads, sizes.num_features, sizes.head_dim)}
    {reshape("next_normalizer", "after_mass", 1, sizes.num_heads, sizes.num_features)}"""


def _state(sizes: Sizes) -> str:
    return f"""
    {reshape("state_sum", "recurrent_state", sizes.num_heads, sizes.num_features, sizes.head_dim)}
    {reshape("state_mass", "normalizer", sizes.num_heads, sizes.num_features, 1)}"""


def _one_token(sizes: Sizes) -> str:
    """One token: if the window is full, its oldest row moves to the state before the token attends."""
    kv_heads, window, width = sizes.num_key_value_heads, sizes.window_size, sizes.head_dim
    return f"""
    {moved_window(sizes)}
    {numbers("first_row", [0])}
    oldest_key = Slice (window_key, first_row, second_row, row_axis)
    oldest_value = Slice (window_value, first_row, second_row, row_axis)
    known_key = Where (is_full, oldest_key, blank)
    known_value = Where (is_full, oldest_value, blank)
    {reshape("oldest_key_row", "known_key", kv_heads, 1, width)}
    {reshape("oldest_value_row", "known_value", kv_heads, 1, width)}
    {_by_head("leaving_key", "oldest_key_row", sizes, 1)}
    {_by_head("leaving_value", "oldest_value_row", sizes, 1)}
    {_features("key", "leaving_key", "wide_key_map")}
    {number("no_feature", 0.0)}
    leaving_features = Where (is_full, key_features, no_feature)
    {_state(sizes)}
    {_next_state("leaving_features", "leaving_value", sizes)}
    entering_sum = Identity (after_sum)
    entering_mass = Identity (after_mass)
    {reshape("window_key_rows", "next_window_key", kv_heads, window, width)}
    {reshape("window_value_rows", "next_window_value", kv_heads, window, width)}
    {_by_head("keys", "window_key_rows", sizes, window)}
    {_by_head("values", "window_value_rows", sizes, window)}
    {transpose("key_columns", "keys", 0, 2, 1)}
    every_score = MatMul (wide_rotated_query, key_columns)
    {_window_terms("is_row")}
    {_sums(sizes, "terms", "values")}"""


def _many_tokens(sizes: Sizes) -> str:
    """Many tokens: each attends to its window by softmax, to older rows of the span by features, and to the state."""
    rows = sizes.window_size + sizes.length
    return f"""
    {span(sizes)}
    {_by_head("keys", "span_key", sizes, rows)}
    {_by_head("values", "span_value", sizes, rows)}
    {_features("key", "keys", "wide_key_map")}
    {_state(sizes)}
    entering_sum = Identity (state_sum)
    entering_mass = Identity (state_mass)
    {transpose("key_columns", "keys", 0, 2, 1)}
    every_score = MatMul (wide_rotated_query, key_columns)
    {_window_terms("is_visible")}
    {transpose("feature_columns", "key_features", 0, 2, 1)}
    every_product = MatMul (query_features, feature_columns)
    is_beyond = GreaterOrEqual (distance, window_size)
    is_older = And (is_beyond, is_token_row)
    products = Where (is_older, every_product, no_term)
    row_weights = Add (terms, products)
    {_sums(sizes, "row_weights", "values")}
    {reshape("left_column", "left", rows, 1)}
    leaving_features = Where (left_column, key_features, no_term)
    {_next_state("leaving_features", "values", sizes)}"""
