"""Every mixer's operator against its naive reference, and the laws that all of them share."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from liger_export.config import MIXERS
from liger_export.ops import ATTENTIONS, NAIVE_ATTENTIONS
from tests.tiny import relative_l2

OPTIONS = {"gate_normalizer": 16.0, "recurrent_weight": 0.5}


@dataclass(frozen=True)
class Case:
    """One mixer on heads of one shape, with random projections in float64."""

    mixer: str
    length: int
    groups: int = 2
    repeats: int = 2
    head_dim: int = 8
    window: int = 8
    slots: int = 4
    features: int = 3

    @property
    def heads(self) -> int:
        return self.groups * self.repeats

    @property
    def options(self) -> list[float]:
        return [OPTIONS[name] for name in ATTENTIONS[self.mixer].form.options]

    def projections(self, scale: float = 1.0) -> list[Tensor]:
        torch.manual_seed(self.length)
        counts = (self.heads, self.groups, self.groups)
        return [scale * torch.randn(2, self.length, n * self.head_dim, dtype=torch.float64) for n in counts]

    def angles(self) -> Tensor:
        frequencies = 100.0 ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        return (torch.arange(self.length)[:, None] * frequencies).expand(2, -1, -1)

    def learned(self) -> dict[str, Tensor]:
        torch.manual_seed(7)
        shape = (self.heads, self.head_dim, self.features)
        tensors = {"query_map": torch.randn(shape), "key_map": torch.randn(shape)}
        tensors["window_factors"] = torch.randn(self.heads)
        return {name: tensors[name].double() for name in ATTENTIONS[self.mixer].form.parameters}

    def empty_state(self, dtype: torch.dtype) -> list[Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        shapes = {
            "gla": [(self.groups, self.head_dim, self.head_dim)],
            "hgrn2": [(self.groups, self.head_dim, self.head_dim)],
            "gsa": [(self.groups, self.slots, self.head_dim)] * 2,
            "lolcats": [(self.heads, 2 * self.features, self.head_dim), (self.heads, 2 * self.features)],
            "softmax": [],
        }[self.mixer]
        window = torch.zeros(2, self.groups, self.window, self.head_dim, dtype=dtype)
        return [*(torch.zeros(2, *shape, dtype=wide) for shape in shapes), window, window.clone()]

    def run(self, inputs: list[Tensor], cuts: list[int], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """The operator over a sequence in several calls: the outputs joined, and the final state."""
        wide, state, outputs = torch.promote_types(dtype, torch.float32), self.empty_state(dtype), []
        learned = [tensor.to(dtype) for tensor in self.learned().values()]
        for start, stop in pairwise([0, *cuts, self.length]):
            here, angles = slice(start, stop), self.angles()[:, start:stop]
            output, *state = ATTENTIONS[self.mixer](
                *(tensor[:, here].to(dtype) for tensor in inputs),
                angles.cos().to(wide),
                angles.sin().to(wide),
                torch.arange(start, stop).expand(2, -1),
                *state,
                *learned,
                *self.options,
            )
            outputs.append(output)
        return torch.cat(outputs, dim=1), state

    def naive(self, inputs: list[Tensor]) -> Tensor:
        heads = [tensor.unflatten(-1, (-1, self.head_dim)) for tensor in inputs]
        named = dict(zip(ATTENTIONS[self.mixer].form.options, self.options, strict=True)) | self.learned()
        if self.mixer == "gsa":
            named["num_slots"] = self.slots
        return NAIVE_ATTENTIONS[self.mixer](*heads, self.angles(), self.window, **named).flatten(2)


mixers = pytest.mark.parametrize("mixer", [*MIXERS, "softmax"])

shapes = {
    "groups": st.integers(1, 3),
    "repeats": st.integers(1, 3),
    "head_dim": st.sampled_from([2, 6, 12]),
    "window": st.integers(1, 24),
    "slots": st.sampled_from([1, 2]),
    "features": st.integers(1, 5),
}


@mixers
@settings(max_examples=8, deadline=None)
@given(length=st.integers(1, 45), shape=st.fixed_dictionaries(shapes))
def test_operator_equals_naive_reference(mixer: str, length: int, shape: dict[str, int]) -> None:
    case = Case(mixer, length, **shape)
    inputs = case.projections()
    expected = case.naive(inputs)
    assert relative_l2(case.run(inputs, [], torch.float64)[0], expected) < 1e-12
    assert relative_l2(case.run(inputs, [], torch.float32)[0], expected) < 1e-5


@mixers
@settings(max_examples=12, deadline=None)
@given(data=st.data(), length=st.integers(2, 60), shape=st.fixed_dictionaries(shapes))
def test_any_split_into_calls_gives_the_same_output_and_state(
    mixer: str, data: st.DataObject, length: int, shape: dict[str, int]
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    case = Case(mixer, length, **shape)
    whole, final = case.run(case.projections(), [], torch.float32)
    parts, state = case.run(case.projections(), cuts, torch.float32)
    assert relative_l2(parts, whole) < 1e-5
    for measured, expected in zip(state, final, strict=True):
        assert relative_l2(measured, expected) < 1e-5


@mixers
def test_window_edges_equal_the_naive_reference_step_by_step(mixer: str) -> None:
    """Positions W - 1, W, W + 1, 2 W and 10 W."""
    case = Case(mixer, length=41, window=4)
    inputs = case.projections()
    steps, _ = case.run(inputs, list(range(1, 41)), torch.float32)
    expected = case.naive(inputs)
    for position in (3, 4, 5, 8, 40):
        assert relative_l2(steps[:, position], expected[:, position]) < 1e-5


@mixers
def test_strong_gates_neither_overflow_nor_lose_digits(mixer: str) -> None:
    """Keys of a size that closes and opens gates fully, in the form for many tokens and in single steps."""
    case = Case(mixer, length=40)
    inputs = case.projections(scale=30.0)
    inputs[0] = inputs[0] / 30  # a sharp softmax of the query would hide the rest
    expected = case.naive(inputs)
    for cuts in ([], list(range(1, 40))):
        assert relative_l2(case.run(inputs, cuts, torch.float32)[0], expected) < 1e-5


@mixers
def test_padding_at_the_end_of_a_row_leaves_no_trace(mixer: str) -> None:
    case = Case(mixer, length=20)
    inputs, state = case.projections(), case.empty_state(torch.float64)
    learned = case.learned().values()
    position_ids = torch.arange(20).expand(2, -1).clone()
    position_ids[1, 13:] = -1
    angles = case.angles()
    padded, *after = ATTENTIONS[mixer](
        *inputs, angles.cos(), angles.sin(), position_ids, *state, *learned, *case.options
    )
    whole, _ = case.run(inputs, [], torch.float64)
    alone, *expected = ATTENTIONS[mixer](
        *(tensor[:, :13] for tensor in inputs),
        angles[:, :13].cos(),
        angles[:, :13].sin(),
        torch.arange(13).expand(2, -1),
        *state,
        *learned,
        *case.options,
    )
    assert relative_l2(padded[0], whole[0]) < 1e-13
    assert relative_l2(padded[1, :13], alone[1]) < 1e-13
    for measured, reference in zip(after, expected, strict=True):
        assert relative_l2(measured[1], reference[1]) < 1e-13


@mixers
def test_gradient_equals_gradient_of_naive_reference(mixer: str) -> None:
    """Token by token in the reference, chunk by chunk in the operator."""
    case = Case(mixer, length=19, head_dim=4, window=5, slots=2)
    inputs = [tensor.requires_grad_() for tensor in case.projections()]
    weights = torch.randn(2, 19, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((case.naive(inputs) * weights).sum(), inputs)
    output, _ = case.run(inputs, [], torch.float64)
    for measured, reference in zip(torch.autograd.grad((output * weights).sum(), inputs), expected, strict=True):
        assert relative_l2(measured, reference) < 1e-9


def test_learned_tensors_of_lolcats_get_gradients() -> None:
    case = Case("lolcats", length=24, window=4)
    learned = [tensor.requires_grad_() for tensor in case.learned().values()]
    heads = [tensor.unflatten(-1, (-1, case.head_dim)) for tensor in case.projections()]
    names = ATTENTIONS["lolcats"].form.parameters
    expected = NAIVE_ATTENTIONS["lolcats"](*heads, case.angles(), case.window, **dict(zip(names, learned, strict=True)))
    gradients = torch.autograd.grad(expected.square().sum(), learned)
    angles, position_ids = case.angles(), torch.arange(24).expand(2, -1)
    state = case.empty_state(torch.float64)
    output, *_ = ATTENTIONS["lolcats"](*case.projections(), angles.cos(), angles.sin(), position_ids, *state, *learned)
    for measured, reference in zip(torch.autograd.grad(output.square().sum(), learned), gradients, strict=True):
        assert relative_l2(measured, reference) < 1e-9


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
@mixers
def test_some_projections_may_need_no_gradient(mixer: str, wanted: tuple[int, ...]) -> None:
    """As in LoRA on a few projections: the rest of the operator's outputs then have no gradient either."""
    case = Case(mixer, length=20, window=4)
    inputs = case.projections()
    output, _ = case.run([tensor.requires_grad_() for tensor in inputs], [], torch.float64)
    expected = torch.autograd.grad(output.square().sum(), inputs)
    inputs = case.projections()
    needing = [inputs[index].requires_grad_() for index in wanted]
    output, _ = case.run(inputs, [], torch.float64)
    for index, measured in zip(wanted, torch.autograd.grad(output.square().sum(), needing), strict=True):
        assert relative_l2(measured, expected[index]) < 1e-12


@mixers
def test_bfloat16_inputs_keep_a_float32_state(mixer: str) -> None:
    case = Case(mixer, length=40)
    inputs = case.projections()
    output, (*recurrent, window_key, window_value) = case.run(inputs, [], torch.bfloat16)
    assert output.dtype == window_key.dtype == window_value.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in recurrent} <= {torch.float32}
    assert relative_l2(output, case.naive([tensor.bfloat16().double() for tensor in inputs])) < 1e-2


@pytest.mark.parametrize("length", [1, 20])
@mixers
def test_operator_is_registered_as_torch_expects(mixer: str, length: int) -> None:
    case = Case(mixer, length)
    angles = case.angles().float()
    arguments = (
        *(tensor.float() for tensor in case.projections()),
        angles.cos(),
        angles.sin(),
        torch.arange(length).expand(2, -1).contiguous(),
        *case.empty_state(torch.float32),
        *(tensor.float() for tensor in case.learned().values()),
        *case.options,
    )
    results = torch.library.opcheck(ATTENTIONS[mixer].torch_op, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("weight", [0.25, 0.9])
def test_recurrent_weight_shares_the_output_between_recurrence_and_window(weight: float) -> None:
    case = Case("gla", length=20)
    heads = [tensor.unflatten(-1, (-1, 8)) for tensor in case.projections()]
    expected = NAIVE_ATTENTIONS["gla"](*heads, case.angles(), 8, gate_normalizer=4.0, recurrent_weight=weight)
    angles, position_ids = case.angles(), torch.arange(20).expand(2, -1)
    state = case.empty_state(torch.float64)
    output, *_ = ATTENTIONS["gla"](*case.projections(), angles.cos(), angles.sin(), position_ids, *state, 4.0, weight)
    assert relative_l2(output, expected.flatten(2)) < 1e-12
