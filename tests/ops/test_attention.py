from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.ops import gla_attention, naive_gla_attention
from tests.tiny import relative_l2

NORMALIZER = 16.0


def projections(length: int, heads: int, groups: int, head_dim: int, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(2, length, count * head_dim, dtype=torch.float64) for count in (heads, groups, groups)]


def rotary_angles(length: int, head_dim: int) -> torch.Tensor:
    frequencies = 100.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return (torch.arange(length)[:, None] * frequencies).expand(2, -1, -1)


def attend(
    inputs: list[torch.Tensor], groups: int, head_dim: int, window: int, cuts: list[int], dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the operator over a sequence in several calls; returns the outputs joined and the final state."""
    length = inputs[0].shape[1]
    angles = rotary_angles(length, head_dim)
    wide = torch.promote_types(dtype, torch.float32)
    state = [torch.zeros(2, groups, head_dim, head_dim, dtype=wide)]
    state += [torch.zeros(2, groups, window, head_dim, dtype=dtype) for _ in range(2)]
    outputs = []
    for start, stop in pairwise([0, *cuts, length]):
        here = slice(start, stop)
        position_ids = torch.arange(start, stop).expand(2, -1)
        output, *state = gla_attention(
            *(tensor[:, here].to(dtype) for tensor in inputs),
            angles[:, here].cos().to(wide),
            angles[:, here].sin().to(wide),
            position_ids,
            *state,
            NORMALIZER,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=1), state


def naive(inputs: list[torch.Tensor], head_dim: int, window: int) -> torch.Tensor:
    heads = [tensor.unflatten(-1, (-1, head_dim)) for tensor in inputs]
    return naive_gla_attention(*heads, rotary_angles(inputs[0].shape[1], head_dim), window, NORMALIZER).flatten(2)


configurations = {
    "groups": st.integers(1, 3),
    "repeats": st.integers(1, 4),
    "head_dim": st.sampled_from([2, 6, 10, 16]),
    "window": st.integers(1, 24),
}


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 50), **configurations)
def test_operator_equals_naive_reference(length: int, groups: int, repeats: int, head_dim: int, window: int) -> None:
    inputs = projections(length, groups * repeats, groups, head_dim)
    expected = naive(inputs, head_dim, window)
    output, _ = attend(inputs, groups, head_dim, window, [], torch.float64)
    assert relative_l2(output, expected) < 1e-12
    output, _ = attend(inputs, groups, head_dim, window, [], torch.float32)
    assert relative_l2(output, expected) < 1e-5


@settings(max_examples=30, deadline=None)
@given(data=st.data(), length=st.integers(2, 60), **configurations)
def test_any_split_into_calls_gives_the_same_output_and_state(
    data: st.DataObject, length: int, groups: int, repeats: int, head_dim: int, window: int
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    inputs = projections(length, groups * repeats, groups, head_dim)
    whole, final = attend(inputs, groups, head_dim, window, [], torch.float32)
    parts, state = attend(inputs, groups, head_dim, window, cuts, torch.float32)
    assert relative_l2(parts, whole) < 1e-5
    for measured, expected in zip(state, final, strict=True):
        assert relative_l2(measured, expected) < 1e-5


def test_bfloat16_inputs_keep_a_float32_state() -> None:
    inputs = projections(40, 4, 2, 8)
    output, (recurrent_state, window_key, _) = attend(inputs, 2, 8, 8, [], torch.bfloat16)
    assert (output.dtype, recurrent_state.dtype, window_key.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert relative_l2(output, naive(inputs, 8, 8)) < 5e-3 * 2


def test_gradient_equals_gradient_of_naive_reference() -> None:
    inputs = [tensor.requires_grad_() for tensor in projections(19, 4, 2, 4)]
    torch.manual_seed(1)
    weights = torch.randn(2, 19, 16, dtype=torch.float64)
    expected = torch.autograd.grad((dense_reference(inputs, 4, 5) * weights).sum(), inputs)
    output, _ = attend(inputs, 2, 4, 5, [], torch.float64)
    for measured, reference in zip(torch.autograd.grad((output * weights).sum(), inputs), expected, strict=True):
        assert relative_l2(measured, reference) < 1e-10


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_some_projections_may_need_no_gradient(wanted: tuple[int, ...]) -> None:
    """As in LoRA on a few projections: the rest of the operator's outputs then have no gradient either."""
    inputs = projections(9, 4, 2, 4)
    needing = [inputs[index].requires_grad_() for index in wanted]
    output, _ = attend(inputs, 2, 4, 5, [], torch.float64)
    expected = torch.autograd.grad(dense_reference(inputs, 4, 5).square().sum(), needing)
    for measured, reference in zip(torch.autograd.grad(output.square().sum(), needing), expected, strict=True):
        assert relative_l2(measured, reference) < 1e-10


def dense_reference(inputs: list[torch.Tensor], head_dim: int, window: int) -> torch.Tensor:
    """The same equations with every pair of positions written out, so that autograd can differentiate them."""
    query, key, value = (tensor.unflatten(-1, (-1, head_dim)) for tensor in inputs)
    repeats = query.shape[2] // key.shape[2]
    key, value = key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2)
    length = query.shape[1]
    cumulative = (torch.nn.functional.logsigmoid(key) / NORMALIZER).cumsum(1)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    decay = (cumulative[:, :, None] - cumulative[:, None]).exp() * (distance >= 0)[:, :, None, None]
    linear = torch.einsum("bihd,bjhd,bijhd,bjhe->bihe", query.softmax(-1), key.softmax(-1), decay, value)
    angles = rotary_angles(length, head_dim)[:, :, None]
    turn = torch.complex(angles.cos(), angles.sin())
    rotated = [torch.complex(*tensor.chunk(2, -1)) * turn for tensor in (query, key)]
    scores = torch.einsum("bihd,bjhd->bhij", rotated[0], rotated[1].conj()).real / head_dim**0.5
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    softmax = torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), value)
    return (0.5 * linear + 0.5 * softmax).flatten(2)


@pytest.mark.parametrize("length", [1, 20])
def test_operator_is_registered_as_torch_expects(length: int) -> None:
    query, key, value = (tensor.float() for tensor in projections(length, 4, 2, 4))
    angles = rotary_angles(length, 4).float()
    state = [torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 8, 4), torch.zeros(2, 2, 8, 4)]
    position_ids = torch.arange(length).expand(2, -1).contiguous()
    arguments = (query, key, value, angles.cos(), angles.sin(), position_ids, *state, NORMALIZER)
    results = torch.library.opcheck(gla_attention, arguments)
    assert set(results.values()) == {"SUCCESS"}
