"""The kernels beside attention, on a GPU or by Triton's interpreter, against their definitions."""

import pytest
import torch

from liger_export.kernels.plans import Plan, pointwise_plans
from tests.kernels.cases import DEVICE, every_dtype

triton = pytest.importorskip("triton", reason="needs Triton, which is made for Linux alone")


def launch(name: str, batch: int, length: int, *arguments: object) -> None:
    from liger_export.kernels import pointwise

    plan: Plan = pointwise_plans()[name]
    getattr(pointwise, name)[plan.programs(batch, length)](*arguments, **plan.constants, **plan.options)


@every_dtype
@pytest.mark.parametrize("width", [8, 1000, 1024, 2500])
def test_gated_silu_equals_its_definition(dtype: torch.dtype, width: int) -> None:
    rows = torch.randn(3, 2 * width, device=DEVICE).to(dtype)
    gated = torch.full((3, width), float("nan"), dtype=dtype, device=DEVICE)
    launch("gated_silu_kernel", 3, width, rows, gated, width)
    gate, up = rows.double().chunk(2, dim=-1)
    expected = gate * gate.sigmoid() * up
    assert float((gated.double() - expected).norm() / expected.norm()) < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("width", [1, 100, 8192, 20000])
def test_the_first_of_the_largest_logits_is_chosen(width: int) -> None:
    logits = torch.randint(-50, 50, (4, width), device=DEVICE).float()
    logits[0] = float("-inf")
    chosen = torch.full((4,), -1, dtype=torch.int64, device=DEVICE)
    launch("most_likely_kernel", 4, 1, logits, chosen, width)
    assert chosen.tolist() == [int((row == row.max()).nonzero()[0]) for row in logits]


@pytest.mark.parametrize("length", [1, 1024, 1500])
def test_padding_is_not_counted(length: int) -> None:
    positions = torch.arange(length, device=DEVICE).repeat(3, 1)
    positions[1, length // 2 :] = -1
    positions[2] = -1
    counts = torch.full((3,), -1, dtype=torch.int32, device=DEVICE)
    launch("count_kernel", 3, length, positions, counts, length)
    assert counts.tolist() == [length, length // 2, 0]
