"""Every mixer's operator against its naive reference, and the properties that all mixers share."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from liger_export.ops import ATTENTIONS
from tests.ops.cases import Case, Sequences, assert_equal, every_mixer, reference, sequences
from tests.tiny import relative_l2


def empty_state(case: Case, dtype: torch.dtype) -> list[Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    return [
        torch.zeros(2, *shape, dtype=dtype if name.startswith("window") else wide)
        for name, shape in case.state_shapes.items()
    ]


def arguments(case: Case, inputs: Sequences, state: list[Tensor], positions: Tensor, dtype: torch.dtype) -> list[Any]:
    """The operator's arguments, in order."""
    wide = torch.promote_types(dtype, torch.float32)
    tensors = [tensor.to(dtype) for tensor in inputs.projections]
    tensors += [inputs.angles.cos().to(wide), inputs.angles.sin().to(wide), positions, *state]
    return [*tensors, *(tensor.to(dtype) for tensor in inputs.learned.values()), *case.options]


def positions_of(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop).expand(2, -1).contiguous()


def run(
    case: Case, inputs: Sequences, cuts: Sequence[int] = (), dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Run the operator on a sequence in several calls. Returns the joined outputs and the final state."""
    state, outputs = empty_state(case, dtype), []
    for start, stop in pairwise([0, *cuts, inputs.length]):
        here = arguments(case, inputs.between(start, stop), state, positions_of(start, stop), dtype)
        output, *state = ATTENTIONS[case.mixer](*here)
        outputs.append(output)
    return {"output": torch.cat(outputs, dim=1), **dict(zip(case.signature.states, state, strict=True))}


shapes = {
    "num_key_value_heads": st.integers(1, 3),
    "num_queries_per_kv": st.integers(1, 3),
    "head_dim": st.sampled_from([2, 6, 12]),
    "window_size": st.integers(1, 24),
    "num_slots": st.sampled_from([1, 2]),
    "feature_dim": st.integers(1, 5),
}


@every_mixer
@settings(max_examples=8, deadline=None)
@given(length=st.integers(1, 45), shape=st.fixed_dictionaries(shapes))
def test_operator_equals_naive_reference(mixer: str, length: int, shape: dict[str, int]) -> None:
    case = Case(mixer, **shape)
    inputs = sequences(case, length)
    expected = reference(case, inputs)
    assert_equal(run(case, inputs), expected, 1e-12)
    assert_equal(run(case, inputs, dtype=torch.float32), expected, 1e-5)


@every_mixer
@settings(max_examples=12, deadline=None)
@given(data=st.data(), length=st.integers(2, 60), shape=st.fixed_dictionaries(shapes))
def test_any_split_into_calls_gives_the_same_output_and_state(
    mixer: str, data: st.DataObject, length: int, shape: dict[str, int]
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    case = Case(mixer, **shape)
    inputs = sequences(case, length)
    assert_equal(run(case, inputs, cuts, torch.float32), run(case, inputs, dtype=torch.float32), 1e-5)


@every_mixer
def test_window_edges_equal_the_naive_reference_step_by_step(mixer: str) -> None:
    """Positions W - 1, W, W + 1, 2 W and 10 W."""
    case = Case(mixer, window_size=4)
    inputs = sequences(case, 41)
    steps, expected = run(case, inputs, range(1, 41), torch.float32), reference(case, inputs)
    assert_equal(steps, expected, 1e-5)
    for position in (3, 4, 5, 8, 40):
        assert relative_l2(steps["output"][:, position], expected["output"][:, position]) < 1e-5


@every_mixer
def test_strong_gates_neither_overflow_nor_lose_digits(mixer: str) -> None:
    """Keys so large that gates open and close fully, in one call and in single steps."""
    case = Case(mixer)
    inputs = sequences(case, 40, key_scale=30.0)
    expected = reference(case, inputs)
    for cuts in ((), range(1, 40)):
        assert_equal(run(case, inputs, cuts, torch.float32), expected, 1e-5)


@every_mixer
def test_padding_at_the_end_of_a_row_changes_nothing(mixer: str) -> None:
    case = Case(mixer)
    inputs, state = sequences(case, 20), empty_state(case, torch.float64)
    positions = positions_of(0, 20)
    positions[1, 13:] = -1
    padded, *after = ATTENTIONS[mixer](*arguments(case, inputs, state, positions, torch.float64))
    alone = run(case, inputs.between(0, 13))
    assert relative_l2(padded[0], run(case, inputs)["output"][0]) < 1e-13
    assert relative_l2(padded[1, :13], alone["output"][1]) < 1e-13
    for name, measured in zip(case.signature.states, after, strict=True):
        assert relative_l2(measured[1], alone[name][1]) < 1e-13


@every_mixer
def test_gradient_equals_gradient_of_naive_reference(mixer: str) -> None:
    """The reference runs token by token, the operator in chunks; gradients also flow through the final states."""
    case = Case(mixer, head_dim=4, window_size=5, num_slots=2)
    inputs = sequences(case, 19)
    wanted = [tensor.requires_grad_() for tensor in (*inputs.projections, *inputs.learned.values())]
    expected = torch.autograd.grad(weighted_sum(reference(case, inputs)), wanted)
    for measured, gradient in zip(torch.autograd.grad(weighted_sum(run(case, inputs)), wanted), expected, strict=True):
        assert relative_l2(measured, gradient) < 1e-9


def weighted_sum(results: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weighted = [tensor * torch.randn(tensor.shape, generator=generator) for tensor in results.values()]
    return torch.stack([tensor.sum() for tensor in weighted]).sum()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
@every_mixer
def test_gradients_of_some_projections_equal_those_of_all(mixer: str, wanted: tuple[int, ...]) -> None:
    """LoRA on a few projections: only these need gradients."""
    case = Case(mixer, window_size=4)
    every = [tensor.requires_grad_() for tensor in sequences(case, 20).projections]
    output = run(case, sequences(case, 20).projected(*every))["output"]
    expected = torch.autograd.grad(output.square().sum(), every)
    inputs = sequences(case, 20)
    needing = [inputs.projections[index].requires_grad_() for index in wanted]
    output = run(case, inputs)["output"]
    for index, measured in zip(wanted, torch.autograd.grad(output.square().sum(), needing), strict=True):
        assert relative_l2(measured, expected[index]) < 1e-12


@every_mixer
def test_bfloat16_inputs_keep_a_float32_state(mixer: str) -> None:
    case = Case(mixer)
    inputs = sequences(case, 40)
    results = run(case, inputs, dtype=torch.bfloat16)
    *recurrent, window_key, window_value = (results[name] for name in case.signature.states)
    assert results["output"].dtype == window_key.dtype == window_value.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in recurrent} <= {torch.float32}
    rounded = inputs.projected(*(tensor.bfloat16().double() for tensor in inputs.projections))
    assert relative_l2(results["output"], reference(case, rounded)["output"]) < 1e-2


@pytest.mark.parametrize("length", [1, 20])
@every_mixer
def test_operator_is_registered_as_torch_expects(mixer: str, length: int) -> None:
    case = Case(mixer)
    state = empty_state(case, torch.float32)
    taken = arguments(case, sequences(case, length), state, positions_of(0, length), torch.float32)
    results = torch.library.opcheck(ATTENTIONS[mixer].torch_op, tuple(taken))
    assert set(results.values()) == {"SUCCESS"}


def test_a_registered_function_computes_the_gradients_of_projections_from_the_output_alone() -> None:
    op, case = ATTENTIONS["gla"], Case("gla")
    asked: list[Tensor] = []

    def function(*given: Any) -> tuple[Tensor, ...] | None:
        asked.append(given[-1])
        return None if len(asked) > 1 else tuple(torch.full_like(rows, 7) for rows in given[:3])

    inputs = sequences(case, 20)
    wanted = [tensor.requires_grad_() for tensor in (inputs.query, inputs.value)]
    taken = arguments(case, inputs, empty_state(case, torch.float64), positions_of(0, 20), torch.float64)
    with patch.dict(op._gradients):
        op.register_gradients("cpu", function)
        output, *states = op(*taken)
        by_function = torch.autograd.grad(output.sum(), wanted, retain_graph=True)
        by_recomputation = torch.autograd.grad(output.sum(), wanted, retain_graph=True)
        torch.autograd.grad(output.sum() + states[0].sum(), wanted)
    assert len(asked) == 2
    assert all(gradient.eq(7).all() for gradient in by_function)
    for index, measured in zip((0, 2), by_recomputation, strict=True):
        expected = op.recomputed_gradients(taken, (torch.ones_like(output),))[index]
        assert torch.equal(measured, expected)


@every_mixer
def test_gradients_equal_finite_differences(mixer: str) -> None:
    case = Case(mixer, num_key_value_heads=1, head_dim=4, window_size=3, num_slots=2, feature_dim=2)
    inputs = sequences(case, 5, batch=1)
    wanted = [tensor.requires_grad_() for tensor in inputs.projections]
    state = [tensor[:1] for tensor in empty_state(case, torch.float64)]

    def output(*projections: Tensor) -> Tensor:
        moved = inputs.projected(*projections)
        first, *_ = ATTENTIONS[mixer](*arguments(case, moved, state, positions_of(0, 5)[:1], torch.float64))
        return first

    assert torch.autograd.gradcheck(output, wanted)


@pytest.mark.parametrize("mixer", ["gla", "gsa", "hgrn2"])
@pytest.mark.parametrize("weight", [0.25, 0.9])
def test_recurrent_weight_shares_the_output_between_recurrence_and_window(mixer: str, weight: float) -> None:
    case = Case(mixer, gate_normalizer=4.0, recurrent_weight=weight)
    inputs = sequences(case, 20)
    assert_equal(run(case, inputs), reference(case, inputs), 1e-12)


@every_mixer
@pytest.mark.parametrize("count", [1, 5])
def test_a_full_window_reads_the_same_at_any_position(mixer: str, count: int) -> None:
    case = Case(mixer)
    inputs, generator = sequences(case, count), torch.Generator().manual_seed(0)
    state = [torch.rand(2, *shape, generator=generator) for shape in case.state_shapes.values()]
    near, *far = (
        ATTENTIONS[mixer](*arguments(case, inputs, state, positions_of(start, start + count), torch.float32))
        for start in (case.window_size, 2**31 - 2, 2**32, 2**40)
    )
    for results in far:
        assert all(torch.equal(measured, expected) for measured, expected in zip(results, near, strict=True))
