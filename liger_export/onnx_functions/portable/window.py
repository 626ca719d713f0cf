"""Softmax attention in the window, and the window's update, as portable text: for one token and for many."""

from liger_export.onnx_functions.portable.nodes import FLOAT, cast, number, numbers, reshape, transpose
from liger_export.onnx_functions.portable.sizes import Sizes

__all__ = ["NO_POSITION", "attention", "moved_window", "span"]

NO_POSITION = -(2**40)  # farther than any window from every real position


def attention(sizes: Sizes, output: str) -> str:
    """Define ``output`` [1, T, H * D], softmax attention over the last W keys, and the next window.

    Reads ``rotated_query``, ``rotated_key``, ``value_heads`` and ``position``.
    """
    return (moved_window(sizes) + _one(sizes, output)) if sizes.length == 1 else (span(sizes) + _many(sizes, output))


def moved_window(sizes: Sizes) -> str:
    """Define the next window after one token, and ``is_row`` [W], its rows that hold a token.

    The token's row is appended: ``next_window_key`` and ``next_window_value`` [1, G, W, D]. Once the window is full
    (``is_full``), all rows move up by one and the oldest leaves.
    """
    last = sizes.window_size - 1
    return f"""
    {numbers("rows", range(sizes.window_size))}
    {numbers("window_size", [sizes.window_size])}
    is_held = Less (rows, position)
    is_next = Equal (rows, position)
    is_row = LessOrEqual (rows, position)
    is_full = GreaterOrEqual (position, window_size)
    {reshape("held_column", "is_held", sizes.window_size, 1)}
    {reshape("next_column", "is_next", sizes.window_size, 1)}
    {number("wide_blank", 0.0)}
    {cast("blank", "wide_blank", sizes.activation)}
    {numbers("second_row", [1])}
    {numbers("row_end", [sizes.window_size])}
    {numbers("row_axis", [2])}
    {_moved("key", "rotated_key", sizes, last)}
    {_moved("value", "value_heads", sizes, last)}"""


def _moved(kind: str, source: str, sizes: Sizes, kept: int) -> str:
    later = f"""
    later_{kind} = Slice (window_{kind}, second_row, row_end, row_axis)
    moved_{kind} = Concat <axis = 2> (later_{kind}, new_{kind})"""
    return f"""
    {reshape(f"new_{kind}", source, 1, sizes.num_key_value_heads, 1, sizes.head_dim)}
    held_{kind} = Where (held_column, window_{kind}, blank)
    grown_{kind} = Where (next_column, new_{kind}, held_{kind})
    {later if kept else f"moved_{kind} = Identity (new_{kind})"}
    next_window_{kind} = Where (is_full, moved_{kind}, grown_{kind})"""


def _one(sizes: Sizes, output: str) -> str:
    return f"""
    {reshape("window_query", "rotated_query", 1, sizes.num_key_value_heads, sizes.num_queries_per_kv, sizes.head_dim)}
    {transpose("window_keys", "next_window_key", 0, 1, 3, 2)}
    narrow_scores = MatMul (window_query, window_keys)
    {_weights("is_row", sizes)}
    window_sum = MatMul (narrow_weights, next_window_value)
    {reshape(output, "window_sum", 1, 1, sizes.num_heads * sizes.head_dim)}"""


def _weights(visible: str, sizes: Sizes) -> str:
    """Define ``narrow_weights``: the softmax in float32, cast to activations. Invisible rows get weight 0."""
    return f"""
    {cast("every_score", "narrow_scores", FLOAT)}
    {number("lowest", -3.4e38)}
    scores = Where ({visible}, every_score, lowest)
    weights = Softmax <axis = -1> (scores)
    {cast("narrow_weights", "weights", sizes.activation)}"""


def span(sizes: Sizes) -> str:
    """Define the span of many tokens, the window's rows followed by the call's own, and the next window.

    - ``span_key`` and ``span_value`` [G, W + T, D], zero where there is no token;
    - ``distance`` [T, W + T], tokens from each row to each token, and ``is_visible``, where the row is in its window;
    - ``left`` [W + T], rows that are outside the window after the call;
    - ``next_window_key`` and ``next_window_value`` [1, G, W, D].
    """
    return f"""
    {numbers("rows", range(sizes.window_size))}
    {numbers("window_size", [sizes.window_size])}
    {numbers("row_count", [sizes.window_size + sizes.length])}
    {numbers("nothing", [0])}
    {numbers("single", [1])}
    {numbers("no_position", [NO_POSITION])}
    seen = Slice (position, nothing, single)
    token_ones = Cast <to = 7> (is_token)
    added = ReduceSum <keepdims = 1> (token_ones)
    {reshape("added_row", "added", 1)}
    after = Add (seen, added_row)

    seen_beyond = Sub (seen, window_size)
    past_start = Max (seen_beyond, nothing)
    past_rows = Add (rows, past_start)
    is_past = Less (past_rows, seen)
    past_positions = Where (is_past, past_rows, no_position)
    new_positions = Where (is_token, position, no_position)
    span_positions = Concat <axis = 0> (past_positions, new_positions)
    {reshape("position_column", "position", sizes.length, 1)}
    distance = Sub (position_column, span_positions)
    is_behind = GreaterOrEqual (distance, nothing)
    is_near = Less (distance, window_size)
    is_visible = And (is_behind, is_near)

    after_beyond = Sub (after, window_size)
    kept_start = Max (after_beyond, nothing)
    kept_positions = Add (rows, kept_start)
    is_kept = Less (kept_positions, after)
    is_kept_past = Less (kept_positions, seen)
    index_in_past = Sub (kept_positions, past_start)
    index_in_call = Sub (kept_positions, seen)
    index_after_past = Add (index_in_call, window_size)
    open_index = Where (is_kept_past, index_in_past, index_after_past)
    last_row = Sub (row_count, single)
    kept_index = Min (open_index, last_row)
    is_token_row = GreaterOrEqual (span_positions, nothing)
    is_before_kept = Less (span_positions, kept_start)
    left = And (is_token_row, is_before_kept)

    {reshape("past_column", "is_past", sizes.window_size, 1)}
    {reshape("kept_column", "is_kept", sizes.window_size, 1)}
    {number("wide_blank", 0.0)}
    {cast("blank", "wide_blank", sizes.activation)}
    {_joined("key", "rotated_key", sizes)}
    {_joined("value", "value_heads", sizes)}"""


def _joined(kind: str, source: str, sizes: Sizes) -> str:
    return f"""
    {reshape(f"{kind}_rows", f"window_{kind}", sizes.num_key_value_heads, sizes.window_size, sizes.head_dim)}
    past_{kind} = Where (past_column, {kind}_rows, blank)
    new_{kind} = Where (token_column, {source}, blank)
    span_{kind} = Concat <axis = 1> (past_{kind}, new_{kind})
    taken_{kind} = Gather <axis = 1> (span_{kind}, kept_index)
    kept_{kind} = Where (kept_column, taken_{kind}, blank)
    {reshape(f"next_window_{kind}", f"kept_{kind}", 1, sizes.num_key_value_heads, sizes.window_size, sizes.head_dim)}"""


def _many(sizes: Sizes, output: str) -> str:
    kv_heads, queries_per_kv = sizes.num_key_value_heads, sizes.num_queries_per_kv
    length, width, rows = sizes.length, sizes.head_dim, sizes.window_size + sizes.length
    return f"""
    {reshape("window_query", "rotated_query", kv_heads, queries_per_kv * length, width)}
    {transpose("window_keys", "span_key", 0, 2, 1)}
    flat_scores = MatMul (window_query, window_keys)
    {reshape("narrow_scores", "flat_scores", kv_heads, queries_per_kv, length, rows)}
    {_weights("is_visible", sizes)}
    {reshape("flat_weights", "narrow_weights", kv_heads, queries_per_kv * length, rows)}
    window_sum = MatMul (flat_weights, span_value)
    {reshape("window_heads", "window_sum", sizes.num_heads, length, width)}
    {transpose("window_tokens", "window_heads", 1, 0, 2)}
    {reshape(output, "window_tokens", 1, length, sizes.num_heads * width)}"""
