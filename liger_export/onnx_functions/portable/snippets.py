"""Pieces of ONNX text that several portable bodies are made of: heads, rotation, gates and the output.

Value names are the interface between pieces: each docstring says which names a piece reads and defines.
"""

from liger_export.onnx_functions.portable.nodes import FLOAT, cast, number, numbers, reshape, transpose
from liger_export.onnx_functions.portable.sizes import Sizes

__all__ = ["heads_and_positions", "log_gate", "mixed", "zero_padding"]


def heads_and_positions(sizes: Sizes) -> str:
    """Define the heads, rotated and not, and which positions hold a token.

    - ``query_heads`` [H, T, D], ``key_heads`` and ``value_heads`` [G, T, D], in the activations' dtype;
    - ``wide_query`` and ``wide_key``, the same in float32;
    - ``rotated_query`` [H, T, D], already divided by sqrt(D), and ``rotated_key`` [G, T, D];
    - ``query_turned`` and ``key_turned``, rotated, in float32, not divided;
    - ``position`` and ``is_token`` [T], and ``token_column`` [T, 1]. Padding has position -1.
    """
    return _heads(sizes) + _rotated(sizes) + _is_token(sizes)


def _heads(sizes: Sizes) -> str:
    shapes = {"query": sizes.num_heads, "key": sizes.num_key_value_heads, "value": sizes.num_key_value_heads}
    split = "".join(
        reshape(f"{name}_tokens", name, sizes.length, count, sizes.head_dim)
        + transpose(f"{name}_heads", f"{name}_tokens", 1, 0, 2)
        for name, count in shapes.items()
    )
    return split + cast("wide_query", "query_heads", FLOAT) + cast("wide_key", "key_heads", FLOAT)


def _rotated(sizes: Sizes) -> str:
    """Rotary embedding in float32, in Llama's half-split order, from the operator's cos and sin [1, T, D / 2]."""

    def turned(name: str) -> str:
        return f"""
    {name}_first, {name}_second = Split <axis = -1, num_outputs = 2> (wide_{name})
    {name}_first_cos = Mul ({name}_first, cos)
    {name}_second_sin = Mul ({name}_second, sin)
    {name}_second_cos = Mul ({name}_second, cos)
    {name}_first_sin = Mul ({name}_first, sin)
    {name}_turned_first = Sub ({name}_first_cos, {name}_second_sin)
    {name}_turned_second = Add ({name}_second_cos, {name}_first_sin)
    {name}_turned = Concat <axis = -1> ({name}_turned_first, {name}_turned_second)"""

    scale = f"""
    {number("root", sizes.head_dim**-0.5)}
    query_scaled = Mul (query_turned, root)"""
    narrow = cast("rotated_query", "query_scaled", sizes.activation)
    return turned("query") + turned("key") + scale + narrow + cast("rotated_key", "key_turned", sizes.activation)


def _is_token(sizes: Sizes) -> str:
    return f"""
    {reshape("position", "position_ids", sizes.length)}
    {numbers("no_tokens", [0])}
    is_token = GreaterOrEqual (position, no_tokens)
    {reshape("token_column", "is_token", sizes.length, 1)}"""


def zero_padding(name: str, source: str, sizes: Sizes) -> str:
    """Define ``name``: ``source`` [heads, T, ...], float32, with zeros at padding; one token has no padding."""
    if sizes.length == 1:
        return f"""
    {name} = Identity ({source})"""
    return f"""
    {number(f"{name}_blank", 0.0)}
    {name} = Where (token_column, {source}, {name}_blank)"""


def log_gate(name: str, of: str, normalizer: float) -> str:
    """Define ``name`` = logsigmoid(x) / normalizer.

    It uses -logsigmoid(x) = relu(-x) + softplus(-abs(x)), so that no engine's Softplus can overflow.
    """
    return f"""
    negative_{of} = Neg ({of})
    {of}_over = Relu (negative_{of})
    {of}_size = Abs ({of})
    negative_{of}_size = Neg ({of}_size)
    {of}_rest = Softplus (negative_{of}_size)
    {of}_loss = Add ({of}_over, {of}_rest)
    {number("negative_normalizer", -normalizer)}
    {name} = Div ({of}_loss, negative_normalizer)"""


def mixed(sizes: Sizes) -> str:
    """Define ``output`` [1, T, H * D] as the weighted mean of ``recurrent`` (float32) and ``window`` (activations)."""
    return f"""
    wide_window = Cast <to = {FLOAT}> (window)
    {number("recurrent_weight", sizes.recurrent_weight)}
    {number("window_weight", 1 - sizes.recurrent_weight)}
    recurrent_share = Mul (recurrent, recurrent_weight)
    window_share = Mul (wide_window, window_weight)
    wide_output = Add (recurrent_share, window_share)
    {cast("output", "wide_output", sizes.activation)}"""
