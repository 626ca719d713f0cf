import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.ops import naive_rotary, naive_window_attention, rotate, window_attention
from tests.tiny import relative_l2


def random_heads(
    length: int, heads: int, num_key_value_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(length)
    query = torch.randn(2, length, heads, head_dim, dtype=torch.float64)
    key, value = torch.randn(2, 2, length, num_key_value_heads, head_dim, dtype=torch.float64)
    return query, key, value


def positions(length: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + length).expand(2, -1)


def empty(num_key_value_heads: int, window: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.zeros(2, 2, num_key_value_heads, window, head_dim, dtype=torch.float64))  # type: ignore[return-value]


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 80),
    window=st.integers(1, 40),
    num_key_value_heads=st.integers(1, 3),
    num_queries_per_kv=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 8]),
)
def test_blockwise_window_equals_naive_window(
    length: int, window: int, num_key_value_heads: int, num_queries_per_kv: int, head_dim: int
) -> None:
    query, key, value = random_heads(length, num_key_value_heads * num_queries_per_kv, num_key_value_heads, head_dim)
    output, _, _ = window_attention(query, key, value, positions(length), *empty(num_key_value_heads, window, head_dim))
    assert relative_l2(output, naive_window_attention(query, key, value, window)) < 1e-12


def test_window_size_includes_the_current_key() -> None:
    query, key, value = random_heads(5, 1, 1, 4)
    output, _, _ = window_attention(query, key, value, positions(5), *empty(1, 1, 4))
    assert relative_l2(output, value) < 1e-12


def test_buffer_holds_last_keys_oldest_first_and_zeros_past_the_length() -> None:
    _, key, value = random_heads(11, 1, 1, 4)
    buffers = empty(1, 8, 4)
    _, window_key, _ = window_attention(key[:, :3], key[:, :3], value[:, :3], positions(3), *buffers)
    assert torch.equal(window_key[:, 0, :3], key[:, :3, 0])
    assert not window_key[:, 0, 3:].any()
    _, window_key, window_value = window_attention(key, key, value, positions(11), *buffers)
    assert torch.equal(window_key[:, 0], key[:, 3:, 0])
    assert torch.equal(window_value[:, 0], value[:, 3:, 0])


def test_rows_past_the_length_are_never_read() -> None:
    query, key, value = random_heads(3, 2, 1, 4)
    clean = empty(1, 8, 4)
    poisoned = tuple(buffer.clone() for buffer in clean)
    for buffer in poisoned:
        buffer[:, :, 2:] = float("nan")
    at = positions(3, start=2)
    for expected, measured in zip(
        window_attention(query, key, value, at, *clean), window_attention(query, key, value, at, *poisoned), strict=True
    ):
        assert torch.equal(expected, measured)


def test_padding_does_not_change_the_state_and_its_output_is_zero() -> None:
    query, key, value = random_heads(6, 2, 1, 4)
    at = positions(6).clone()
    at[1, 4:] = -1
    for padded in (query, key, value):
        padded[1, 4:] = 1e3
    output, window_key, _ = window_attention(query, key, value, at, *empty(1, 8, 4))
    alone, alone_key, _ = window_attention(query[:, :4], key[:, :4], value[:, :4], positions(4), *empty(1, 8, 4))
    assert torch.equal(output[1, :4], alone[1])
    assert not output[1, 4:].any()
    assert torch.equal(window_key[1], alone_key[1])


def test_rotary_equals_naive_rotary() -> None:
    hidden_states = torch.randn(2, 7, 3, 10, dtype=torch.float64)
    angles = torch.randn(2, 7, 5, dtype=torch.float64)
    assert relative_l2(rotate(hidden_states, angles.cos(), angles.sin()), naive_rotary(hidden_states, angles)) < 1e-14
