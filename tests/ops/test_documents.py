"""Several documents in one row: each gets the output and the gradients that it gets alone."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from liger_export.ops import ATTENTIONS, document_starts, tokens_of_last_document
from tests.ops.cases import Case, Sequences, assert_equal, every_mixer, reference, sequences, stacked
from tests.ops.test_attention import arguments, empty_state, shapes
from tests.tiny import relative_l2


def packed_positions(length: int, starts: Sequence[int]) -> Tensor:
    """Positions [T] that begin again at each of ``starts``."""
    return torch.cat([torch.arange(stop - start) for start, stop in pairwise([0, *starts, length])])


def at_positions(inputs: Sequences, positions: Tensor) -> Sequences:
    """Give each token of one sequence the angles of its own position, int64 [T]."""
    return replace(inputs, angles=inputs.angles[:, positions])


def alone(case: Case, inputs: Sequences, starts: Sequence[int]) -> dict[str, Tensor]:
    """The naive reference of each document by itself: the outputs joined, and the states of the last document."""
    parts = [reference(case, inputs.between(*bounds)) for bounds in pairwise([0, *starts, inputs.length])]
    return {**parts[-1], "output": torch.cat([part["output"] for part in parts], dim=1)}


def run_packed(
    case: Case, inputs: Sequences, positions: Tensor, cuts: Sequence[int] = (), dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Run packed rows, positions [2, T], in several calls."""
    state, outputs = empty_state(case, dtype), []
    for start, stop in pairwise([0, *cuts, inputs.length]):
        here = arguments(case, inputs.between(start, stop), state, positions[:, start:stop].contiguous(), dtype)
        output, *state = ATTENTIONS[case.mixer](*here)
        outputs.append(output)
    return {"output": torch.cat(outputs, dim=1), **dict(zip(case.signature.states, state, strict=True))}


def draw_rows(data: st.DataObject, case: Case, length: int) -> tuple[Sequences, Tensor, list[list[int]]]:
    """Two rows with documents of their own: inputs, positions [2, T], and the starts of each row's documents."""
    starts = [sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4))) for _ in range(2)]
    whole = sequences(case, length)
    positions = torch.stack([packed_positions(length, own) for own in starts])
    rows = [at_positions(whole.row(index), positions[index]) for index in range(2)]
    return stacked(rows), positions, starts


@every_mixer
@settings(max_examples=12, deadline=None)
@given(data=st.data(), length=st.integers(2, 70), shape=st.fixed_dictionaries(shapes))
def test_packed_documents_have_the_outputs_and_gradients_that_they_have_alone(
    mixer: str, data: st.DataObject, length: int, shape: dict[str, int]
) -> None:
    case = Case(mixer, **shape)
    inputs, positions, starts = draw_rows(data, case, length)
    upstream = torch.randn(inputs.query.shape, generator=torch.Generator().manual_seed(1)).double()
    projections = [tensor.requires_grad_() for tensor in inputs.projections]
    measured = run_packed(case, inputs, positions)
    found = torch.autograd.grad((measured["output"] * upstream).sum(), projections)
    each = [alone(case, inputs.row(index), starts[index]) for index in range(2)]
    expected = {name: torch.cat([row[name] for row in each]) for name in each[0]}
    wanted = torch.autograd.grad((expected["output"] * upstream).sum(), projections)
    assert_equal(measured, expected, 1e-12)
    for gradient, reference_gradient in zip(found, wanted, strict=True):
        assert relative_l2(gradient, reference_gradient) <= 1e-11


@every_mixer
@settings(max_examples=8, deadline=None)
@given(data=st.data(), length=st.integers(3, 60), shape=st.fixed_dictionaries(shapes))
def test_packed_documents_continue_from_call_to_call(
    mixer: str, data: st.DataObject, length: int, shape: dict[str, int]
) -> None:
    """A call whose first token begins a document gets an empty state: it is a call of its own."""
    case = Case(mixer, **shape)
    inputs, positions, _ = draw_rows(data, case, length)
    inside = [cut for cut in range(1, length) if positions[:, cut].all()]
    cuts = sorted(data.draw(st.sets(st.sampled_from(inside), max_size=3))) if inside else []
    assert_equal(run_packed(case, inputs, positions, cuts), run_packed(case, inputs, positions), 1e-12)


@every_mixer
def test_padding_after_packed_documents_changes_nothing(mixer: str) -> None:
    case, starts = Case(mixer, window_size=5), [7, 30]
    positions = packed_positions(41, starts).repeat(2, 1)
    inputs = sequences(case, 41)
    padded = positions.clone()
    padded[:, 37:] = -1
    measured, expected = run_packed(case, inputs, padded), run_packed(case, inputs.between(0, 37), positions[:, :37])
    assert_equal({**measured, "output": measured["output"][:, :37]}, expected, 1e-12)


@every_mixer
def test_the_strongest_gates_leak_nothing_into_the_next_document(mixer: str) -> None:
    """In float32, with values of the first document a million times as large."""
    case = Case(mixer)
    inputs = sequences(case, 50, key_scale=20.0)
    positions = packed_positions(50, [23])
    inputs = replace(inputs, value=torch.cat((inputs.value[:, :23] * 1e6, inputs.value[:, 23:]), 1))
    inputs = at_positions(inputs, positions)
    measured = run_packed(case, inputs, positions.repeat(2, 1), dtype=torch.float32)["output"][:, 23:]
    expected = reference(case, inputs.between(23, 50))["output"]
    assert relative_l2(measured, expected) <= 1e-5


@pytest.mark.parametrize(
    ("positions", "starts", "seen", "count"),
    [
        ([5, 6, 7], [0, 0, 0], 5, 8),
        ([0, 1, 0], [0, 0, 1], 0, 1),
        ([3, 0, -1], [0, 1, 0], 3, 1),
        ([-1, -1], [0, 0], 4, 4),
    ],
)
def test_positions_mark_the_documents(positions: list[int], starts: list[int], seen: int, count: int) -> None:
    ids = torch.tensor([positions])
    assert document_starts(ids).int().tolist() == [starts]
    assert tokens_of_last_document(ids, torch.tensor([seen])).tolist() == [count]
