"""The last ``count`` positions of [B, T, hidden_size]; all of them if ``count`` is 0."""

__all__ = ["LAST_POSITIONS_BODY"]

LAST_POSITIONS_BODY = """
    one = Constant <value = int64[1] {1}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    negative = Neg (count)
    start = Reshape (negative, one)
    kept = Slice (hidden_states, start, end, one)
"""
