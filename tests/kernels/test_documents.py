"""Several documents in one row, by kernels: outputs, states and gradients of each document alone, in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from liger_export.kernels import launch
from liger_export.kernels.gradients import projection_gradients
from liger_export.kernels.shapes import TRAINED_MIXERS
from tests.cells import slow_except
from tests.kernels.cases import (
    DEVICE,
    call_arguments,
    case_of,
    empty_state,
    every_trained_mixer,
    one_head,
    options,
    poisoned_outputs,
)
from tests.ops.cases import Case, Sequences, assert_equal, sequences, stacked
from tests.ops.test_documents import alone, at_positions, packed_positions
from tests.tiny import relative_l2

BOUND = 1e-5
# In a block of 16 and on its edges, on the edge of a chunk of 64, one token long, and none.
ROWS = [[1, 5, 16, 17, 64, 90], []]


def packed(case: Case, length: int, rows: Sequence[Sequence[int]], scale: float = 1.0) -> tuple[Sequences, Tensor]:
    """Inputs and positions [2, T] of two rows with documents that begin at ``rows``."""
    positions = torch.stack([packed_positions(length, starts) for starts in rows])
    whole = sequences(case, length, key_scale=scale)
    return stacked([at_positions(whole.row(index), positions[index]) for index in range(2)]), positions


def expected_results(case: Case, inputs: Sequences, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    each = [alone(case, inputs.row(index), starts) for index, starts in enumerate(rows)]
    return {name: torch.cat([row[name] for row in each]) for name in each[0]}


def assert_documents_are_alone(case: Case, length: int, rows: Sequence[Sequence[int]], scale: float = 1.0) -> None:
    inputs, positions = packed(case, length, rows, scale)
    upstream = torch.randn(inputs.query.shape, generator=torch.Generator().manual_seed(3)).double()
    projections = [tensor.detach().requires_grad_() for tensor in inputs.projections]
    expected = expected_results(case, inputs.projected(*projections), rows)
    wanted = torch.autograd.grad((expected["output"] * upstream).sum(), projections)

    arguments, state = call_arguments(inputs, positions, torch.float32), empty_state(case, torch.float32)
    with poisoned_outputs():
        measured = launch.chunkwise(case.mixer, *arguments, state, **options(case))
        found = projection_gradients(case.mixer, *arguments, state, upstream.to(DEVICE).float(), **options(case))
    names = ("output", *case.signature.states)
    assert_equal(dict(zip(names, (tensor.cpu() for tensor in measured), strict=True)), expected, BOUND)
    for name, gradient, reference_gradient in zip("qkv", found, wanted, strict=True):
        error = relative_l2(gradient.cpu(), reference_gradient)
        assert error <= BOUND, f"{name}: relative L2 {error:.1e}"


@pytest.mark.slow
@every_trained_mixer
def test_packed_documents_have_the_results_that_they_have_alone(mixer: str) -> None:
    assert_documents_are_alone(case_of(mixer, window_size=24), 100, ROWS)


@pytest.mark.parametrize("mixer", slow_except(["gla"], TRAINED_MIXERS))
@pytest.mark.parametrize(
    "rows", slow_except([[[64], [1]]], [[[64], [1]], [[15], [48, 63]], [list(range(1, 70)), [69]]]), ids=str
)
def test_boundaries_anywhere(mixer: str, rows: list[list[int]]) -> None:
    assert_documents_are_alone(one_head(mixer, window_size=4), 70, rows)


@pytest.mark.slow
@every_trained_mixer
def test_strong_gates_and_boundaries(mixer: str) -> None:
    assert_documents_are_alone(one_head(mixer), 100, ROWS, scale=30.0)


@every_trained_mixer
def test_a_document_continues_from_a_call_that_ended_in_it(mixer: str) -> None:
    """Rows end in different documents, one of them shorter than the window."""
    case = case_of(mixer, window_size=24)
    inputs, positions = packed(case, 50, [[30], [7, 12]])
    state, outputs = empty_state(case, torch.float32), []
    for start, stop in ((0, 35), (35, 50)):
        arguments = call_arguments(inputs.between(start, stop), positions[:, start:stop], torch.float32)
        output, *following = launch.chunkwise(case.mixer, *arguments, state, **options(case))
        state = tuple(following)
        outputs.append(output)
    measured = zip(("output", *case.signature.states), (torch.cat(outputs, 1), *state), strict=True)
    expected = expected_results(case, inputs, [[30], [7, 12]])
    assert_equal({name: tensor.cpu() for name, tensor in measured}, expected, BOUND)
