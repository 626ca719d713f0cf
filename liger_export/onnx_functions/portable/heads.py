"""Heads, rotation, features and gates of portable bodies. Names are the contract between pieces of text."""

from liger_export.onnx_functions.portable.text import FLOAT, Sizes, cast, number, numbers, reshape, transpose

__all__ = ["gates", "heads", "is_token", "mixed", "rotated", "tokens_only"]


def heads(sizes: Sizes) -> str:
    """Give ``query_heads`` [H, T, D], ``key_heads`` and ``value_heads`` [G, T, D] in the activations' dtype.

    ``wide_key`` is ``key_heads`` in float32.
    """
    shapes = {"query": sizes.heads, "key": sizes.groups, "value": sizes.groups}
    split = "".join(
        reshape(f"{name}_tokens", name, sizes.length, count, sizes.head_dim)
        + transpose(f"{name}_heads", f"{name}_tokens", 1, 0, 2)
        for name, count in shapes.items()
    )
    return split + cast("wide_query", "query_heads", FLOAT) + cast("wide_key", "key_heads", FLOAT)


def rotated(sizes: Sizes) -> str:
    """Give ``rotated_query`` [H, T, D], already divided by sqrt(D), and ``rotated_key`` [G, T, D].

    Rotated in float32: halves turned by the angles whose cosine and sine, [1, T, D / 2], the operator reads.
    """

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


def is_token(sizes: Sizes) -> str:
    """Give ``position``, ``is_token`` [T] and ``token_column`` [T, 1]; padding, position -1, may only end a call."""
    return f"""
    {reshape("position", "position_ids", sizes.length)}
    {numbers("no_tokens", [0])}
    is_token = GreaterOrEqual (position, no_tokens)
    {reshape("token_column", "is_token", sizes.length, 1)}"""


def tokens_only(name: str, source: str, sizes: Sizes) -> str:
    """``source`` [heads, T, ...] in float32 with zeros at padding; a call of one token has none."""
    if sizes.length == 1:
        return f"""
    {name} = Identity ({source})"""
    return f"""
    {number(f"{name}_blank", 0.0)}
    {name} = Where (token_column, {source}, {name}_blank)"""


def gates(of: str, normalizer: float) -> str:
    """Give ``log_gate`` = logsigmoid(x) / normalizer.

    -logsigmoid(x) = relu(-x) + softplus(-abs(x)): whatever form an engine gives Softplus, its argument cannot overflow.
    """
    return f"""
    negative_{of} = Neg ({of})
    {of}_over = Relu (negative_{of})
    {of}_size = Abs ({of})
    negative_{of}_size = Neg ({of}_size)
    {of}_rest = Softplus (negative_{of}_size)
    {of}_loss = Add ({of}_over, {of}_rest)
    {number("negative_normalizer", -normalizer)}
    log_gate = Div ({of}_loss, negative_normalizer)"""


def mixed(sizes: Sizes) -> str:
    """Give ``output`` [1, T, H * D] of ``recurrent`` (float32) and ``window`` (activations), of that shape both."""
    return f"""
    wide_window = Cast <to = {FLOAT}> (window)
    {number("recurrent_weight", sizes.recurrent_weight)}
    {number("window_weight", 1 - sizes.recurrent_weight)}
    recurrent_share = Mul (recurrent, recurrent_weight)
    window_share = Mul (wide_window, window_weight)
    wide_output = Add (recurrent_share, window_share)
    {cast("output", "wide_output", sizes.activation)}"""
