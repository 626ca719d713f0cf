"""The step kernel against the float64 reference."""

import pytest
import torch

from liger_export.errors import KernelError
from liger_export.kernels import launch
from liger_export.kernels.plans import step_plan
from liger_export.kernels.shapes import AttentionShape
from tests.cells import slow_except
from tests.kernels.cases import (
    BOUNDS,
    DEVICE,
    call_arguments,
    case_of,
    empty_state,
    every_dtype,
    every_mixer,
    inputs_and_reference,
    one_head,
    options,
    poisoned_outputs,
    run,
)
from tests.ops.cases import Case, assert_equal
from tests.tiny import relative_l2

in_place_or_not = pytest.mark.parametrize("in_place", slow_except([True], [False, True]), ids=["oldest-first", "ring"])


@pytest.mark.slow
@every_mixer
@every_dtype
@in_place_or_not
def test_steps_equal_the_naive_reference_past_the_windows_edge(mixer: str, dtype: torch.dtype, in_place: bool) -> None:
    case = Case(mixer, head_dim=32, window_size=4)
    inputs, expected = inputs_and_reference(case, 18, dtype)
    assert_equal(run(case, inputs, dtype, range(1, 18), in_place=in_place), expected, BOUNDS[dtype])


FAST = [Case("gla", head_dim=64, window_size=2, gate_normalizer=4.0, recurrent_weight=0.9)]
SLOW = [
    Case("gla", num_key_value_heads=1, num_queries_per_kv=1, head_dim=256, window_size=1),
    Case("hgrn2", num_key_value_heads=3, num_queries_per_kv=5, head_dim=40, window_size=7),
    Case("gla", num_key_value_heads=1, num_queries_per_kv=20, head_dim=80, window_size=3),
    Case("hgrn2", num_queries_per_kv=2, head_dim=128, window_size=256),
]


@pytest.mark.parametrize("case", slow_except(FAST, FAST + SLOW), ids=str)
@in_place_or_not
def test_shapes(case: Case, in_place: bool) -> None:
    inputs, expected = inputs_and_reference(case, 5, torch.float32)
    assert_equal(run(case, inputs, torch.float32, range(1, 5), in_place=in_place), expected, 1e-5)


@pytest.mark.slow
@every_mixer
@in_place_or_not
def test_strong_gates_lose_no_digits(mixer: str, in_place: bool) -> None:
    case = one_head(mixer, window_size=4)
    inputs, expected = inputs_and_reference(case, 24, torch.float32, key_scale=30.0)
    assert_equal(run(case, inputs, torch.float32, range(1, 24), in_place=in_place), expected, 1e-5)


@every_mixer
@in_place_or_not
def test_a_row_without_a_token_keeps_its_state(mixer: str, in_place: bool) -> None:
    case = Case(mixer, head_dim=32, window_size=4)
    inputs, _ = inputs_and_reference(case, 1, torch.float32)
    inputs = inputs.projected(*(tensor.index_fill(0, torch.tensor(1), float("nan")) for tensor in inputs.projections))
    state = tuple(torch.randn_like(tensor) for tensor in empty_state(case, torch.float32))
    before = [tensor.clone() for tensor in state]
    arguments = call_arguments(inputs, torch.tensor([[9], [-1]]), torch.float32)
    with poisoned_outputs():
        if in_place:
            output, after = launch.step_in_place(mixer, *arguments, state, **options(case)), list(state)
        else:
            output, *after = launch.step(mixer, *arguments, state, **options(case))
    assert not output[1].any()
    for found, held in zip(after, before, strict=True):
        assert torch.equal(found[1], held[1])
        assert not torch.equal(found[0], held[0])


def test_oldest_first_restores_the_operators_order() -> None:
    ring = torch.tensor([[4.0, 5.0, 2.0, 3.0], [0.0, 1.0, 0.0, 0.0]])[:, None, :, None]
    ordered = launch.oldest_first(ring, torch.tensor([6, 2]))
    assert ordered.flatten(1).tolist() == [[2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 0.0, 0.0]]


def test_neighbours_in_a_batch_change_nothing() -> None:
    case = Case("gla", head_dim=32, window_size=4)
    inputs, _ = inputs_and_reference(case, 6, torch.float32)
    both = run(case, inputs, torch.float32, range(1, 6))["output"]
    changed = inputs.projected(*(tensor.clone() for tensor in inputs.projections))
    for tensor in changed.projections:
        tensor[1] *= 3
    assert relative_l2(run(case, changed, torch.float32, range(1, 6))["output"][0], both[0]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 16}, "head size 16"),
        ({"window_size": 1025}, "window of 1025 keys"),
        ({"mixer": "softmax"}, "mixer softmax"),
        ({"num_queries_per_kv": 65}, "65 query heads"),
    ],
)
def test_a_shape_without_a_kernel_is_refused(change: dict[str, object], message: str) -> None:
    case = Case(**({"mixer": "gla", "head_dim": 32} | change))  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=message):
        AttentionShape(
            case.mixer, case.num_key_value_heads, case.num_queries_per_kv, case.head_dim, case.window_size, "float32"
        )


def test_a_window_that_only_the_chunkwise_kernels_support_is_refused() -> None:
    shape = AttentionShape("gla", 2, 2, 32, 257, "float32")
    with pytest.raises(KernelError, match="window of 257 keys; it supports 1 to 256"):
        step_plan(shape, 1, ring=True)


def test_a_mixer_without_a_step_kernel_is_refused() -> None:
    case = case_of("gsa")
    inputs, _ = inputs_and_reference(case, 1, torch.float32)
    arguments = call_arguments(inputs, torch.zeros(2, 1, dtype=torch.int64), torch.float32)
    with pytest.raises(KernelError, match="no step kernel for the mixer gsa"):
        launch.step("gsa", *arguments, empty_state(case, torch.float32))


def test_more_tokens_and_other_dtypes_are_refused() -> None:
    case = Case("gla", head_dim=32)
    inputs, _ = inputs_and_reference(case, 2, torch.float32)
    arguments = call_arguments(inputs, torch.arange(2).expand(2, -1), torch.float32)
    with pytest.raises(KernelError, match="2 tokens"):
        launch.step("gla", *arguments, empty_state(case, torch.float32))
    with pytest.raises(KernelError, match="differ in dtype"):
        launch.step("gla", *arguments, empty_state(case, torch.float16))
    double = tuple(tensor.double() for tensor in empty_state(case, torch.float32))
    with pytest.raises(KernelError, match=r"state is torch\.float64"):
        launch.step("gla", *arguments, (double[0], *empty_state(case, torch.float32)[1:]))


@every_mixer
@in_place_or_not
def test_a_full_window_reads_the_same_at_any_position(mixer: str, in_place: bool) -> None:
    case, generator = Case(mixer, head_dim=32, window_size=4), torch.Generator().manual_seed(0)
    inputs, _ = inputs_and_reference(case, 1, torch.float32)
    state = [torch.rand(2, *shape, generator=generator).to(DEVICE) for shape in case.state_shapes.values()]
    results = []
    for start in (4, 2**31, 2**32, 2**40):  # multiples of the window: the ring begins at the same row
        arguments = call_arguments(inputs, torch.full((2, 1), start), torch.float32)
        before = tuple(tensor.clone() for tensor in state)
        if in_place:
            results.append((launch.step_in_place(mixer, *arguments, before, **options(case)), *before))
        else:
            results.append(launch.step(mixer, *arguments, before, **options(case)))
    for far in results[1:]:
        assert all(torch.equal(measured, expected) for measured, expected in zip(far, results[0], strict=True))
