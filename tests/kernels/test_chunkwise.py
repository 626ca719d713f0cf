"""The chunkwise kernels against the float64 reference, alone and combined with the step kernel."""

import pytest
import torch

from liger_export.errors import KernelError
from liger_export.kernels import launch
from liger_export.kernels.shapes import KERNEL_MIXERS
from tests.kernels.cases import (
    BOUNDS,
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
    run,
)
from tests.ops.cases import Case, assert_equal
from tests.tiny import relative_l2


@pytest.mark.slow
@every_trained_mixer
@every_dtype
def test_a_sequence_equals_the_naive_reference(mixer: str, dtype: torch.dtype) -> None:
    case = case_of(mixer, window_size=24)
    inputs, expected = inputs_and_reference(case, 147, dtype)
    assert_equal(run(case, inputs, dtype), expected, BOUNDS[dtype])


@pytest.mark.slow
@every_trained_mixer
@pytest.mark.parametrize("cuts", [(5, 6, 7), (16, 48), (1, 66)], ids=str)
def test_any_split_into_calls_gives_the_same_output_and_state(mixer: str, cuts: tuple[int, ...]) -> None:
    """Single tokens run the step kernel, if there is one, so that each continues the other's state."""
    case = one_head(mixer)
    inputs, expected = inputs_and_reference(case, 72, torch.float32)
    launches = (launch.step if mixer in KERNEL_MIXERS else launch.chunkwise, launch.chunkwise)
    assert_equal(run(case, inputs, torch.float32, cuts, launches=launches), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("gla", num_key_value_heads=1, num_queries_per_kv=1, head_dim=256, window_size=1),
        Case("hgrn2", num_key_value_heads=3, num_queries_per_kv=5, head_dim=40, window_size=7),
        Case("hgrn2", num_key_value_heads=1, num_queries_per_kv=3, head_dim=128, window_size=256),
        Case("hgrn2", num_key_value_heads=1, num_queries_per_kv=1, head_dim=32, window_size=1024),
        Case("gla", head_dim=64, window_size=2, gate_normalizer=4.0, recurrent_weight=0.9),
        case_of("gsa", num_key_value_heads=3, num_queries_per_kv=5, head_dim=40, window_size=7),
        case_of("gsa", num_key_value_heads=1, num_queries_per_kv=1, head_dim=72, window_size=4),
    ],
    ids=str,
)
def test_shapes(case: Case) -> None:
    inputs, expected = inputs_and_reference(case, 21, torch.float32)
    assert_equal(run(case, inputs, torch.float32), expected, 1e-5)


@pytest.mark.slow
@every_trained_mixer
def test_strong_gates_neither_overflow_nor_lose_digits(mixer: str) -> None:
    case = one_head(mixer, window_size=4)
    inputs, expected = inputs_and_reference(case, 130, torch.float32, key_scale=30.0)
    assert_equal(run(case, inputs, torch.float32), expected, 1e-5)


@pytest.mark.slow
@every_trained_mixer
def test_padding_at_the_end_of_a_row_leaves_no_trace(mixer: str) -> None:
    case = one_head(mixer)
    inputs, _ = inputs_and_reference(case, 70, torch.float32)
    alone = run(case, inputs.between(0, 37), torch.float32)
    positions = torch.arange(70).repeat(2, 1)
    positions[1, 37:] = -1
    for tensor in inputs.projections:
        tensor[1, 37:] = float("nan")
    arguments = call_arguments(inputs, positions, torch.float32)
    with poisoned_outputs():
        output, *state = launch.chunkwise(mixer, *arguments, empty_state(case, torch.float32), **options(case))
    assert relative_l2(output[1, :37].cpu(), alone["output"][1]) < 1e-6
    assert not output[1, 37:].any()
    for name, tensor in zip(case.signature.states, state, strict=True):
        assert relative_l2(tensor[1].cpu(), alone[name][1]) < 1e-6


def test_a_call_too_long_for_the_kernels_is_refused() -> None:
    case = Case("gla", num_key_value_heads=1, num_queries_per_kv=1, head_dim=32)
    long = torch.empty(1, 2**26, 96, device="meta").split(32, dim=-1)
    with pytest.raises(KernelError, match="67108864 tokens"):
        launch.chunkwise("gla", long, (), empty_state(case, torch.float32, batch=1))


def test_other_numbers_of_slots_are_refused() -> None:
    case = Case("gsa", head_dim=32, num_slots=8)
    inputs, _ = inputs_and_reference(case, 2, torch.float32)
    arguments = call_arguments(inputs, torch.arange(2).repeat(2, 1), torch.float32)
    with pytest.raises(KernelError, match="8 slots for head size 32"):
        launch.chunkwise("gsa", *arguments, empty_state(case, torch.float32))


@pytest.mark.slow
@every_trained_mixer
def test_a_full_window_reads_the_same_at_any_position(mixer: str) -> None:
    case, generator = one_head(mixer, window_size=4), torch.Generator().manual_seed(0)
    inputs, _ = inputs_and_reference(case, 5, torch.float32)
    state = tuple(torch.rand(2, *shape, generator=generator).to(DEVICE) for shape in case.state_shapes.values())
    near, *far = (
        launch.chunkwise(
            mixer,
            *call_arguments(inputs, torch.arange(start, start + 5).expand(2, -1).contiguous(), torch.float32),
            state,
            **options(case),
        )
        for start in (4, 2**31 - 2, 2**32 - 2, 2**40)
    )
    for results in far:
        assert all(torch.equal(measured, expected) for measured, expected in zip(results, near, strict=True))
