"""Pieces of ONNX text that several stock bodies are made of.

Value names are the interface between pieces: each docstring or comment says which names a piece reads and defines.
Sizes are computed from attributes, and lengths from the inputs, so ONNX Runtime folds them or shares them across
layers.
"""

__all__ = ["MIX", "ROTATE", "SIZES", "gate", "softmax_per_head", "window_attention"]


def _size(name: str, attribute: str) -> str:
    return f"""
    {name}_scalar = Constant <value_int: int = @{attribute}> ()
    {name} = Reshape ({name}_scalar, one)"""


# Defines the sizes as int64[1], to be concatenated into shapes. In value names, "groups" are the key/value heads and
# "repeats" the query heads per key/value head.
SIZES = f"""
    zero = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    rest = Constant <value = int64[1] {{-1}}> ()
    {_size("heads", "num_heads")}
    {_size("groups", "num_key_value_heads")}
    {_size("head_dim", "head_dim")}
    {_size("window_size", "window_size")}
    repeats = Div (heads, groups)
    split_heads = Concat <axis = 0> (zero, zero, rest, head_dim)
    join_heads = Constant <value = int64[3] {{0, 0, -1}}> ()
"""


def softmax_per_head(of: str) -> str:
    """Define ``{of}_features``, the softmax of ``{of}`` [B, T, heads * D] within each head. Reads SIZES."""
    return f"""
    {of}_heads = Reshape ({of}, split_heads)
    {of}_softmax = Softmax <axis = -1> ({of}_heads)
    {of}_features = Reshape ({of}_softmax, join_heads)
"""


def gate(of: str) -> str:
    """Define ``gate`` = logsigmoid(x) / gate_normalizer, computed as softplus(-x) / -gate_normalizer."""
    return f"""
    normalizer = Constant <value_float: float = @gate_normalizer> ()
    negative_normalizer = Neg (normalizer)
    typed_normalizer = CastLike (negative_normalizer, {of})
    negative_{of} = Neg ({of})
    softplus = Softplus (negative_{of})
    gate = Div (softplus, typed_normalizer)
"""


# Defines rotated_query and rotated_key.
ROTATE = """
    typed_cos = CastLike (cos, query)
    typed_sin = CastLike (sin, query)
    rotated_query = RotaryEmbedding <num_heads: int = @num_heads> (query, typed_cos, typed_sin)
    rotated_key = RotaryEmbedding <num_heads: int = @num_key_value_heads> (key, typed_cos, typed_sin)
"""


def window_attention(output: str) -> str:
    """Define ``{output}``, softmax attention over the last W keys, and the next window states.

    GroupQueryAttention counts tokens in int32 and needs them only to know how many rows of the window are filled.
    Tokens that have left the window are therefore not counted.
    """
    return f"""
    {ROTATE}
    first = Constant <value = int64 {{0}}> ()
    last = Constant <value = int64 {{-1}}> ()
    first_in_text = Gather <axis = 1> (position_ids, first)
    last_in_text = Gather <axis = 1> (position_ids, last)
    after_first = Sub (last_in_text, first_in_text)
    full_window = Constant <value_int: int = @window_size> ()
    held = Min (first_in_text, full_window)
    last_position_wide = Add (held, after_first)
    last_position = Cast <to = 6> (last_position_wide)
    furthest_position = ReduceMax <keepdims = 0> (last_position)
    one_more = Constant <value = int32 {{1}}> ()
    total_length = Add (furthest_position, one_more)
    {output}, next_window_key, next_window_value = com.microsoft.GroupQueryAttention
        <num_heads: int = @num_heads, kv_num_heads: int = @num_key_value_heads,
         local_window_size: int = @window_size, sliding_window_cache = 1, do_rotary = 0>
        (rotated_query, rotated_key, value, window_key, window_value, last_position, total_length)
"""


# Reads window and recurrent, and defines output. LinearAttention has already scaled recurrent by recurrent_weight, so
# every weight costs the same. A weight of 0 is not possible: LinearAttention reads a scale of 0 as its default.
MIX = """
    all = Constant <value = float {1.0}> ()
    recurrent_weight = Constant <value_float: float = @recurrent_weight> ()
    window_weight = Sub (all, recurrent_weight)
    typed_window_weight = CastLike (window_weight, window)
    window_share = Mul (window, typed_window_weight)
    output = Add (recurrent, window_share)
"""
