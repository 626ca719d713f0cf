import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.ops import gated_recurrence, naive_gla_recurrence
from tests.tiny import relative_l2


def inputs(
    length: int, heads: int, num_key_value_heads: int, head_dim: int, *, gate_scale: float = 0.1, seed: int = 0
) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    query = torch.randn(2, length, heads, head_dim, dtype=torch.float64).softmax(-1)
    key = torch.randn(2, length, num_key_value_heads, head_dim, dtype=torch.float64).softmax(-1)
    value = torch.randn(2, length, num_key_value_heads, head_dim, dtype=torch.float64)
    gate = -gate_scale * torch.rand(2, length, num_key_value_heads, head_dim, dtype=torch.float64)
    state = torch.randn(2, num_key_value_heads, head_dim, head_dim, dtype=torch.float64)
    return [query, key, value, gate, state]


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(2, 70),
    num_key_value_heads=st.integers(1, 3),
    num_queries_per_kv=st.integers(1, 4),
    head_dim=st.sampled_from([2, 5, 8, 33]),
    gate_scale=st.sampled_from([1e-4, 0.1, 8.0, 500.0]),
)
def test_chunks_equal_naive_recurrence(
    length: int, num_key_value_heads: int, num_queries_per_kv: int, head_dim: int, gate_scale: float
) -> None:
    arguments = inputs(
        length, num_key_value_heads * num_queries_per_kv, num_key_value_heads, head_dim, gate_scale=gate_scale
    )
    expected, expected_state = naive_gla_recurrence(*arguments)
    output, state = gated_recurrence(*arguments)
    assert relative_l2(output, expected) < 1e-12
    assert relative_l2(state, expected_state) < 1e-12

    single = [tensor.float() for tensor in arguments]
    output, state = gated_recurrence(*single)
    assert relative_l2(output, expected) < 1e-5
    assert relative_l2(state, expected_state) < 1e-5


def test_one_step_equals_naive_recurrence() -> None:
    arguments = inputs(1, heads=6, num_key_value_heads=2, head_dim=8)
    expected, expected_state = naive_gla_recurrence(*arguments)
    output, state = gated_recurrence(*arguments)
    assert relative_l2(output, expected) < 1e-14
    assert relative_l2(state, expected_state) < 1e-14


def test_half_precision_inputs_accumulate_in_the_states_float32() -> None:
    arguments = inputs(300, heads=4, num_key_value_heads=2, head_dim=8, gate_scale=1e-3)
    rounded = [tensor.bfloat16() for tensor in arguments[:4]] + [arguments[4].float()]
    expected, _ = naive_gla_recurrence(*(tensor.double() for tensor in rounded))
    output, state = gated_recurrence(*rounded)
    assert output.dtype == state.dtype == torch.float32
    assert relative_l2(output, expected) < 1e-5


def test_strongest_gates_neither_overflow_nor_lose_the_current_token() -> None:
    query, key, value, gate, state = inputs(40, heads=2, num_key_value_heads=1, head_dim=4)
    output, _ = gated_recurrence(*(t.float() for t in (query, key, value, torch.full_like(gate, -1e4), state)))
    only_current = torch.einsum("bthd,btgd,btge->bthe", query, key, value)
    assert relative_l2(output, only_current) < 1e-5


def test_gradient_of_chunks_equals_gradient_through_single_steps() -> None:
    arguments = [tensor.requires_grad_() for tensor in inputs(21, heads=4, num_key_value_heads=2, head_dim=3)]
    weights = torch.randn(2, 21, 4, 3, dtype=torch.float64)
    gradients = []
    for run in (step_by_step, lambda *a: gated_recurrence(*a)[0]):
        gradients.append(torch.autograd.grad((run(*arguments) * weights).sum(), arguments))
    for fast, reference in zip(gradients[1], gradients[0], strict=True):
        assert relative_l2(fast, reference) < 1e-10


def step_by_step(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gate: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    outputs = []
    for t in range(query.shape[1]):
        here = slice(t, t + 1)
        output, state = gated_recurrence(query[:, here], key[:, here], value[:, here], gate[:, here], state)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("length", [1, 37])
def test_reading_along_the_values_equals_multiplying_each_state_with_the_query(length: int) -> None:
    _, key, value, gate, _ = inputs(length, heads=6, num_key_value_heads=2, head_dim=5)
    value = torch.randn(2, length, 2, 8, dtype=torch.float64)
    query = torch.randn(2, length, 6, 8, dtype=torch.float64)
    state = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    output, last = gated_recurrence(query, key, value, gate, state, read_values=True)
    for t in range(length):
        state = gate[:, t].exp().unsqueeze(-1) * state + key[:, t].unsqueeze(-1) * value[:, t].unsqueeze(-2)
        expected = torch.einsum("bgkv,bgrv->bgrk", state, query[:, t].unflatten(1, (2, 3))).flatten(1, 2)
        assert relative_l2(output[:, t], expected) < 1e-13
    assert relative_l2(last, state) < 1e-13
