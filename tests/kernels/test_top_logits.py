"""The kernels of ``liger::Candidates``, on a GPU or in Triton's interpreter, against a sort and a sum."""

import numpy as np
import pytest
import torch

from liger_export.kernels.plans import TOP_LOGITS, pointwise_plans
from tests.kernels.cases import DEVICE
from tests.top_logits import Logits, assert_top_logits, tied_logits

triton = pytest.importorskip("triton", reason="needs Triton, which is only available on Linux")


def launch(name: str, batch: int, size: int, *arguments: object) -> None:
    from liger_export.kernels import top_logits

    plan = pointwise_plans()[name]
    getattr(top_logits, name)[plan.programs(batch, size)](*arguments, **plan.constants, **plan.options)


def programs(name: str, size: int) -> int:
    return pointwise_plans()[name].programs(1, size)[0]


def top_logits_of(values: Logits, temperature: float) -> Logits:
    """Run the kernels like the operator does, on poisoned memory. ``values`` are logits [B, T, V]."""
    batch, length, width = values.shape
    logits, heat = torch.from_numpy(values).to(DEVICE), torch.tensor(temperature, device=DEVICE)

    def memory(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        lists = torch.full((batch, count, TOP_LOGITS), -1, dtype=torch.int64, device=DEVICE)
        return lists, torch.full((batch, count, 2), float("nan"), device=DEVICE)

    count = programs("list_kernel", width)
    lists, sums = memory(count)
    launch("list_kernel", batch, width, logits, heat, lists, sums, width, length)
    while count > 1:
        fewer = programs("merge_kernel", count)
        merged = memory(fewer)
        launch("merge_kernel", batch, count, lists, sums, heat, *merged, count)
        (lists, sums), count = merged, fewer
    found = torch.full((batch, 1 + 2 * TOP_LOGITS), float("nan"), device=DEVICE)
    launch("order_kernel", batch, 1, lists, sums, heat, found)
    return np.asarray(found.cpu())


@pytest.mark.parametrize("width", [1, 255, 256, 300, 8192, 20000])
@pytest.mark.parametrize("temperature", [1e-3, 0.7, 1e4])
def test_the_largest_logits_and_the_sum_of_all(width: int, temperature: float) -> None:
    logits = np.random.default_rng(width).normal(0, 6, (2, 3, width)).astype(np.float32)
    assert_top_logits(top_logits_of(logits, temperature), logits, temperature)


@pytest.mark.parametrize("distinct", [1, 2, 40])
def test_equal_logits_are_sorted_by_token(distinct: int) -> None:
    logits = tied_logits(distinct, (2, 1, 30000), distinct)
    assert_top_logits(top_logits_of(logits, 1.0), logits, 1.0)


@pytest.mark.slow
def test_infinite_logits_and_more_lists_than_a_program_merges() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1, 1, 8192 * 32 + 5000)).astype(np.float32)
    logits[..., 7:] = -np.inf
    logits[..., -100:] = np.arange(100, dtype=np.float32) / 64 - 3e38
    with np.errstate(invalid="ignore"):
        assert_top_logits(top_logits_of(logits, 1.0), logits, 1.0)


@pytest.mark.parametrize("at", [0, 300, 8500])
@pytest.mark.parametrize("value", [np.nan, -np.float32(np.nan), np.inf])
def test_a_logit_that_is_not_finite_sorts_first(value: float, at: int) -> None:
    logits = np.random.default_rng(at).normal(0, 3, (1, 1, 9000)).astype(np.float32)
    logits[..., at] = value
    logits[..., 100] = np.inf
    found = top_logits_of(logits, 1.0)[0, 1]
    assert np.isnan(found) if np.isnan(value) else found == np.inf


def test_nothing_is_done_at_temperature_0() -> None:
    found = top_logits_of(np.zeros((2, 1, 9000), dtype=np.float32), 0.0)
    assert (found[:, 0] == 0).all()
    assert np.isnan(found[:, 1:]).all()
