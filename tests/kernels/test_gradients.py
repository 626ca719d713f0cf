"""The gradients by kernels against float64 gradients of the naive reference."""

import pytest
import torch
from torch import Tensor

from liger_export.kernels.gradients import projection_gradients
from liger_export.kernels.shapes import KERNEL_MIXERS, TRAINED_MIXERS
from liger_export.ops import ATTENTIONS
from tests.cells import slow_except
from tests.kernels.cases import (
    DEVICE,
    call_arguments,
    case_of,
    empty_state,
    every_dtype,
    every_trained_mixer,
    inputs_and_reference,
    one_head,
    options,
    poisoned_outputs,
)
from tests.ops.cases import Case, Sequences, reference, sequences
from tests.tiny import relative_l2

BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def output_gradient(case: Case, length: int, dtype: torch.dtype) -> Tensor:
    """Gradient of the output [B, T, H * D], which ``dtype`` represents exactly, in float64."""
    generator = torch.Generator().manual_seed(3)
    width = case.num_attention_heads * case.head_dim
    return torch.randn(2, length, width, generator=generator).to(dtype).double()


def expected_gradients(case: Case, inputs: Sequences, upstream: Tensor) -> tuple[Tensor, ...]:
    projections = [tensor.detach().requires_grad_() for tensor in inputs.projections]
    output = reference(case, inputs.projected(*projections))["output"]
    return torch.autograd.grad((output * upstream).sum(), projections)


def measured_gradients(
    case: Case, inputs: Sequences, upstream: Tensor, dtype: torch.dtype, positions: Tensor | None = None
) -> list[Tensor]:
    positions = torch.arange(inputs.length).repeat(2, 1) if positions is None else positions
    arguments = call_arguments(inputs, positions, dtype)
    with poisoned_outputs():
        found = projection_gradients(
            case.mixer, *arguments, empty_state(case, dtype), upstream.to(DEVICE, dtype), **options(case)
        )
    return [gradient.cpu() for gradient in found]


def assert_gradients_equal(case: Case, length: int, dtype: torch.dtype, *, key_scale: float = 1.0) -> None:
    inputs, _ = inputs_and_reference(case, length, dtype, key_scale=key_scale)
    upstream = output_gradient(case, length, dtype)
    measured = measured_gradients(case, inputs, upstream, dtype)
    for name, found, expected in zip("qkv", measured, expected_gradients(case, inputs, upstream), strict=True):
        assert found.dtype == dtype
        error = relative_l2(found, expected)
        assert error <= BOUNDS[dtype], f"{name}: relative L2 {error:.1e}"


@pytest.mark.parametrize("mixer", slow_except(KERNEL_MIXERS, TRAINED_MIXERS))
@every_dtype
@pytest.mark.parametrize("length", slow_except([37], [1, 37]))
def test_gradients_equal_those_of_the_naive_reference(mixer: str, dtype: torch.dtype, length: int) -> None:
    assert_gradients_equal(case_of(mixer, window_size=24), length, dtype)


@pytest.mark.slow
@every_trained_mixer
@pytest.mark.parametrize("length", [16, 65, 147])
def test_any_length(mixer: str, length: int) -> None:
    assert_gradients_equal(one_head(mixer), length, torch.float32)


@pytest.mark.slow
@every_trained_mixer
def test_strong_gates_neither_overflow_nor_lose_digits(mixer: str) -> None:
    assert_gradients_equal(one_head(mixer, window_size=4), 130, torch.float32, key_scale=30.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("gla", num_key_value_heads=1, num_queries_per_kv=1, head_dim=256, window_size=1),
        Case("hgrn2", num_key_value_heads=3, num_queries_per_kv=5, head_dim=40, window_size=7),
        Case("hgrn2", num_key_value_heads=1, num_queries_per_kv=3, head_dim=128, window_size=256),
        Case("gla", num_key_value_heads=3, num_queries_per_kv=3, head_dim=64, window_size=64),
        Case("gla", head_dim=64, window_size=2, gate_normalizer=4.0, recurrent_weight=0.9),
        case_of("gsa", num_key_value_heads=3, num_queries_per_kv=5, head_dim=40, window_size=7),
        case_of("gsa", head_dim=64, window_size=2, gate_normalizer=4.0, recurrent_weight=0.9),
        case_of("gsa", num_key_value_heads=1, num_queries_per_kv=1, head_dim=72, window_size=1),
    ],
    ids=str,
)
def test_shapes(case: Case) -> None:
    assert_gradients_equal(case, 21, torch.float32)


@pytest.mark.slow
def test_windows_wider_than_the_step_kernels() -> None:
    case = Case("gla", num_key_value_heads=1, num_queries_per_kv=1, head_dim=32, window_size=260)
    assert_gradients_equal(case, 290, torch.float32)


@pytest.mark.slow
@every_trained_mixer
def test_padding_gets_zeros_and_changes_no_other_gradient(mixer: str) -> None:
    case = one_head(mixer)
    inputs, _ = inputs_and_reference(case, 70, torch.float32)
    upstream = output_gradient(case, 70, torch.float32)
    alone = measured_gradients(case, inputs.between(0, 37), upstream[:, :37], torch.float32)
    positions = torch.arange(70).repeat(2, 1)
    positions[1, 37:] = -1
    for tensor in (*inputs.projections, upstream):
        tensor[1, 37:] = float("nan")
    for found, expected in zip(
        measured_gradients(case, inputs, upstream, torch.float32, positions), alone, strict=True
    ):
        assert relative_l2(found[1, :37], expected[1]) < 1e-6
        assert not found[1, 37:].any()


@pytest.mark.slow
@every_trained_mixer
def test_gradients_continue_from_a_state(mixer: str) -> None:
    """Gradients of the last tokens alone equal the PyTorch operator's, whose window and state hold the first tokens."""
    case = case_of(mixer, window_size=8)
    inputs, _ = inputs_and_reference(case, 30, torch.float32)
    upstream = output_gradient(case, 30, torch.float32)[:, 13:].to(DEVICE, torch.float32)
    first, last = inputs.between(0, 13), inputs.between(13, 30)
    positions = torch.arange(30).repeat(2, 1)
    op, state = ATTENTIONS[mixer], [torch.nan_to_num(tensor) for tensor in empty_state(case, torch.float32)]
    projections, angles = call_arguments(first, positions[:, :13], torch.float32)
    _, *state = op.run(*projections, *angles, *state, *case.options)
    projections, angles = call_arguments(last, positions[:, 13:], torch.float32)
    projections = tuple(rows.detach().requires_grad_() for rows in projections)
    output, *_ = op.run(*projections, *angles, *state, *case.options)
    expected = torch.autograd.grad(output, projections, upstream)
    found = projection_gradients(mixer, projections, angles, tuple(state), upstream, **options(case))
    for measured, gradient in zip(found, expected, strict=True):
        assert relative_l2(measured, gradient) < 1e-5


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
@every_trained_mixer
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize(
    ("length", "key_scale", "head_dim"),
    [(1000, 1.0, 64), (4097, 30.0, 64), (8192, 1.0, 64), (300, 1.0, 128), (300, 1.0, 256)],
)
def test_gradients_of_long_sequences_and_wide_heads(
    mixer: str, dtype: torch.dtype, length: int, key_scale: float, head_dim: int
) -> None:
    """Against the PyTorch operator in float64."""
    case = case_of(mixer, head_dim=head_dim, num_key_value_heads=3, num_queries_per_kv=3, window_size=64)
    inputs = sequences(case, length, key_scale=key_scale)
    inputs = inputs.projected(*(rows.to(dtype).double() for rows in inputs.projections))
    upstream = output_gradient(case, length, dtype)
    positions = torch.arange(length).repeat(2, 1)
    angles = (inputs.angles.cos(), inputs.angles.sin())
    state = (torch.zeros(2, *shape, dtype=torch.float64) for shape in case.state_shapes.values())
    wide = [tensor.to(DEVICE) for tensor in (*inputs.projections, *angles, positions, *state)]
    expected = ATTENTIONS[mixer].recomputed_gradients((*wide, *case.options), (upstream.to(DEVICE),))
    for found, gradient in zip(measured_gradients(case, inputs, upstream, dtype), expected, strict=True):
        assert relative_l2(found, gradient.cpu()) <= BOUNDS[dtype]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
@every_trained_mixer
def test_a_second_call_gives_the_same_gradients(mixer: str) -> None:
    """It launches what the first one compiled."""
    case = case_of(mixer)
    inputs, _ = inputs_and_reference(case, 37, torch.float32)
    upstream = output_gradient(case, 37, torch.float32)
    first, second = (measured_gradients(case, inputs, upstream, torch.float32) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
