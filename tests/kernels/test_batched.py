"""The batched step kernel against the float64 reference, on small batches, which it computes too."""

from collections.abc import Iterator

import pytest
import torch

from liger_export.kernels import launch
from liger_export.kernels.plans import BATCHED_COLUMNS, batched_step_plan
from liger_export.kernels.shapes import AttentionShape
from tests.kernels.cases import (
    BOUNDS,
    DTYPES,
    call_arguments,
    empty_state,
    inputs_and_reference,
    options,
    poisoned_outputs,
    run,
)
from tests.ops.cases import Case, assert_equal

HALVES = [dtype for dtype in DTYPES if dtype != torch.float32]
in_place_or_not = pytest.mark.parametrize("in_place", [False, True], ids=["oldest-first", "ring"])


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Run the batched kernel for every batch. Yields one entry per plan, and requires at least one."""
    names: list[str] = []

    def plan(shape: AttentionShape, *, ring: bool):  # type: ignore[no-untyped-def]
        names.append("batched")
        return batched_step_plan(shape, ring=ring)

    monkeypatch.setattr(launch, "BATCHED_COLUMNS", 1)
    monkeypatch.setattr(launch, "compiles_batched_steps", lambda: True)
    monkeypatch.setattr(launch, "batched_step_plan", plan)
    yield names
    assert names


@pytest.mark.slow
@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case("gla", num_key_value_heads=2, num_queries_per_kv=4, head_dim=64, window_size=4),
        Case("hgrn2", num_key_value_heads=1, num_queries_per_kv=3, head_dim=128, window_size=5, recurrent_weight=0.9),
        Case("gla", num_key_value_heads=1, num_queries_per_kv=8, head_dim=128, window_size=17, gate_normalizer=4.0),
        Case("hgrn2", num_key_value_heads=1, num_queries_per_kv=1, head_dim=64, window_size=1),
    ],
    ids=str,
)
@in_place_or_not
def test_steps_equal_the_naive_reference_past_the_windows_edge(case: Case, dtype: torch.dtype, in_place: bool) -> None:
    length = case.window_size + 4
    inputs, expected = inputs_and_reference(case, length, dtype)
    assert_equal(run(case, inputs, dtype, range(1, length), in_place=in_place), expected, BOUNDS[dtype])


@pytest.mark.slow
@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_steps_follow_a_prompt_read_by_the_chunkwise_kernels(head_dim: int) -> None:
    case = Case("gla", num_key_value_heads=1, num_queries_per_kv=4, head_dim=head_dim, window_size=64)
    inputs, expected = inputs_and_reference(case, 67, torch.float16)
    assert_equal(run(case, inputs, torch.float16, range(62, 67)), expected, BOUNDS[torch.float16])


@pytest.mark.usefixtures("launched")
@in_place_or_not
def test_a_row_without_a_token_keeps_its_state(in_place: bool) -> None:
    case = Case("gla", head_dim=64, window_size=4)
    inputs, _ = inputs_and_reference(case, 1, torch.float16)
    inputs = inputs.projected(*(tensor.index_fill(0, torch.tensor(1), float("nan")) for tensor in inputs.projections))
    state = tuple(torch.randn_like(tensor) for tensor in empty_state(case, torch.float16))
    before = [tensor.clone() for tensor in state]
    arguments = call_arguments(inputs, torch.tensor([[9], [-1]]), torch.float16)
    with poisoned_outputs():
        if in_place:
            output, after = launch.step_in_place("gla", *arguments, state, **options(case)), list(state)
        else:
            output, *after = launch.step("gla", *arguments, state, **options(case))
    assert not output[1].any()
    assert output[0].isfinite().all()
    for found, held in zip(after, before, strict=True):
        assert torch.equal(found[1], held[1])
        assert not torch.equal(found[0], held[0])


def test_small_batches_and_other_shapes_run_the_step_kernel() -> None:
    def supports(**changes: object) -> bool:
        sizes: dict[str, object] = {
            "num_key_value_heads": 8,
            "num_queries_per_kv": 4,
            "head_dim": 128,
            "window": 64,
            "activation": "bfloat16",
        }
        return batched_step_plan(AttentionShape("gla", **{**sizes, **changes}), ring=False) is not None  # type: ignore[arg-type]

    assert supports()
    assert supports(head_dim=64, num_queries_per_kv=8, window=1, activation="float16")
    for change in (
        {"activation": "float32"},
        {"head_dim": 32},
        {"head_dim": 256},
        {"num_queries_per_kv": 9},
        {"window": 65},
    ):
        assert not supports(**change)
    # 16 sequences of an 8B layer's 8 heads of 128 columns
    assert BATCHED_COLUMNS == 16 * 8 * 128


def test_one_sequence_fewer_and_an_older_triton_run_the_step_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("gla", num_key_value_heads=1, num_queries_per_kv=1, head_dim=64, window_size=1)
    inputs, _ = inputs_and_reference(case, 1, torch.float16)
    arguments = call_arguments(inputs, torch.zeros(2, 1, dtype=torch.int64), torch.float16)
    asked: list[bool] = []
    monkeypatch.setattr(launch, "batched_step_plan", lambda shape, *, ring: asked.append(ring))
    for least, is_new in ((129, True), (128, False), (128, True)):
        monkeypatch.setattr(launch, "BATCHED_COLUMNS", least)
        monkeypatch.setattr(launch, "compiles_batched_steps", lambda is_new=is_new: is_new)
        launch.step("gla", *arguments, empty_state(case, torch.float16), **options(case))
    assert asked == [False]  # once: for two sequences of 64 columns and a Triton that compiles it
