"""The last ``count`` positions of [B, T, hidden_size]; all of them if ``count`` is 0."""

__all__ = ["LAST_POSITIONS_BODY"]

# Slice would take any count. Reshape refuses all but one number, and Split a count below 0 or above T.
LAST_POSITIONS_BODY = """
    one = Constant <value = int64[1] {1}> ()
    first = Constant <value = int64 {0}> ()
    step = Constant <value = int64 {1}> ()
    shape = Shape (hidden_states)
    length = Gather (shape, step)
    positions = Range (first, length, step)
    [logits_to_keep_is_one_number] asked = Reshape (count, one)
    is_all = Equal (asked, first)
    number = Where (is_all, length, asked)
    skipped = Sub (length, number)
    sizes = Concat <axis = 0> (skipped, number)
    [logits_to_keep_is_from_0_to_the_tokens_read] others, last = Split <axis = 0> (positions, sizes)
    kept = Gather <axis = 1> (hidden_states, last)
"""
