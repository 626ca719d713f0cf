"""The kernels as PyTorch operators."""

from functools import partial
from unittest.mock import patch

import pytest
import torch

from liger_export.kernels import register
from liger_export.kernels.gradients import projection_gradients
from liger_export.kernels.register import attention, gradient, register_cuda_kernels
from liger_export.ops import ATTENTIONS
from tests.cells import slow_except
from tests.kernels.cases import (
    DEVICE,
    call_arguments,
    case_of,
    empty_state,
    every_trained_mixer,
    inputs_and_reference,
    one_head,
)
from tests.ops.cases import Case
from tests.tiny import relative_l2


@every_trained_mixer
@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize(
    ("head_dim", "window"), [(16, 8), (32, 8), (32, 300)], ids=["pytorch", "kernel", "no step kernel"]
)
def test_operators_give_the_same_by_kernels_and_by_pytorch(mixer: str, length: int, head_dim: int, window: int) -> None:
    case = case_of(mixer, head_dim=head_dim, window_size=window)
    inputs, _ = inputs_and_reference(case, length, torch.float32)
    projections, positions = call_arguments(inputs, torch.arange(length).repeat(2, 1), torch.float32)
    arguments = (*projections, *positions, *empty_state(case, torch.float32), *case.options)
    for found, expected in zip(attention(mixer, *arguments), ATTENTIONS[mixer].run(*arguments), strict=True):
        assert relative_l2(found, expected) < 1e-5


@every_trained_mixer
@pytest.mark.parametrize("length", slow_except([1], [1, 20]))
def test_gradients_are_the_same_by_kernels_and_by_pytorch(mixer: str, length: int) -> None:
    case = one_head(mixer)
    inputs, _ = inputs_and_reference(case, length, torch.float32)
    projections, positions = call_arguments(inputs, torch.arange(length).repeat(2, 1), torch.float32)
    state = (torch.nan_to_num(tensor) for tensor in empty_state(case, torch.float32))
    upstream = torch.randn(projections[0].shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    arguments = (*projections, *positions, *state, *case.options)
    found, expected = (
        gradient(mixer, *arguments, upstream),
        ATTENTIONS[mixer].recomputed_gradients(arguments, (upstream,)),
    )
    assert found is not None
    for measured, wanted in zip(found, expected, strict=True):
        assert relative_l2(measured, wanted) < 1e-5


@pytest.mark.slow
@every_trained_mixer
def test_compiled_code_takes_the_gradients_of_kernels(mixer: str) -> None:
    case, op = case_of(mixer), ATTENTIONS[mixer]
    inputs, _ = inputs_and_reference(case, 20, torch.float32)
    projections, positions = call_arguments(inputs, torch.arange(20).repeat(2, 1), torch.float32)
    state = [torch.nan_to_num(tensor) for tensor in empty_state(case, torch.float32)]
    wanted = [rows.contiguous().requires_grad_() for rows in projections]

    def loss(*rows: torch.Tensor) -> torch.Tensor:
        return op(*rows, *positions, *state, *case.options)[0].square().sum()

    expected = torch.autograd.grad(loss(*wanted), wanted)
    with patch.dict(op._gradients):
        op.register_gradients(DEVICE, partial(gradient, mixer))
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        with patch.object(register, "projection_gradients", wraps=projection_gradients) as launched:
            found = torch.autograd.grad(compiled(*wanted), wanted)
    assert launched.call_count == 1
    for measured, gradient_by_pytorch in zip(found, expected, strict=True):
        assert relative_l2(measured, gradient_by_pytorch) < 1e-5


@pytest.mark.parametrize("case", [Case("gla", head_dim=16), Case("gsa", head_dim=32, num_slots=8)], ids=str)
def test_a_shape_without_kernels_has_no_gradients_by_kernels(case: Case) -> None:
    inputs, _ = inputs_and_reference(case, 3, torch.float32)
    projections, positions = call_arguments(inputs, torch.arange(3).repeat(2, 1), torch.float32)
    upstream = torch.ones(projections[0].shape, device=DEVICE)
    arguments = (*projections, *positions, *empty_state(case, torch.float32), *case.options)
    assert gradient(case.mixer, *arguments, upstream) is None


def test_registering_twice_only_changes_cuda() -> None:
    assert register_cuda_kernels()
    assert register_cuda_kernels()
    case = Case("gla", head_dim=32)
    inputs, _ = inputs_and_reference(case, 3, torch.float32)
    projections, positions = call_arguments(inputs, torch.arange(3).repeat(2, 1), torch.float32)
    arguments = (*projections, *positions, *empty_state(case, torch.float32), *case.options)
    found, expected = ATTENTIONS["gla"](*arguments)[0], ATTENTIONS["gla"].run(*arguments)[0]
    assert found.device.type == DEVICE
    assert relative_l2(found, expected) < 1e-5
