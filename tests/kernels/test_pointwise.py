"""The pointwise kernels, on a GPU or in Triton's interpreter, against their definitions."""

import pytest
import torch

from liger_export.config import RopeConfig, inverse_frequencies, rotary_turns
from liger_export.kernels.plans import Plan, pointwise_plans
from tests.angles import FAR_POSITIONS, exact_angles
from tests.kernels.cases import DEVICE, every_dtype

triton = pytest.importorskip("triton", reason="needs Triton, which is only available on Linux")


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


@pytest.mark.parametrize("width", [1, 100, 2048, 5000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_the_first_of_the_largest_logits_is_chosen(width: int) -> None:
    logits = torch.randint(-50, 50, (4, width), device=DEVICE).float()
    logits[0, 1:] = float("-inf")
    assert most_likely(logits) == [int((row == row.max()).nonzero()[0]) for row in logits]


@pytest.mark.parametrize("at", [0, 2047, 2048, 4999])
def test_nothing_is_chosen_if_a_logit_is_nan_or_infinite(at: int) -> None:
    logits = torch.randn(4, 5000, device=DEVICE)
    logits[0, at] = float("nan")
    logits[1, at] = float("inf")
    logits[2] = float("-inf")
    logits[3] = float("nan")
    assert most_likely(logits) == [-1] * 4


def most_likely(logits: torch.Tensor) -> list[int]:
    width = logits.shape[1]
    chosen = torch.full((4,), -2, dtype=torch.int64, device=DEVICE)
    parts = pointwise_plans()["best_of_parts_kernel"].programs(4, width)[0]
    values = torch.full((4, parts), float("nan"), device=DEVICE)
    indices = torch.full((4, parts), -1, dtype=torch.int32, device=DEVICE)
    launch("best_of_parts_kernel", 4, width, logits, values, indices, width)
    launch("argmax_kernel", 4, 1, values, indices, chosen, parts)
    found: list[int] = chosen.tolist()
    return found


@pytest.mark.parametrize("length", [1, 1024, 1500])
def test_padding_is_not_counted(length: int) -> None:
    positions = torch.arange(length, device=DEVICE).repeat(3, 1)
    positions[1, length // 2 :] = -1
    positions[2] = -1
    counts = torch.full((3,), -1, dtype=torch.int32, device=DEVICE)
    launch("count_kernel", 3, length, positions, counts, length)
    assert counts.tolist() == [length, length // 2, 0]


@every_dtype
@pytest.mark.parametrize("width", [8, 2048, 3000])
def test_rms_norm_equals_its_definition(dtype: torch.dtype, width: int) -> None:
    rows, weight = torch.randn(3, width, device=DEVICE).to(dtype), torch.rand(width, device=DEVICE).to(dtype)
    normed = torch.full((3, width), float("nan"), dtype=dtype, device=DEVICE)
    launch("rms_norm_kernel", 3, width, rows, weight, normed, width, 1e-5)
    expected = rows.double() * (rows.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert float((normed.double() - expected).norm() / expected.norm()) < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_residual", [False, True])
def test_a_product_begins_with_bias_and_residual(has_bias: bool, has_residual: bool) -> None:
    bias, residual = torch.randn(1500, device=DEVICE), torch.randn(3, 1500, device=DEVICE)
    begun = torch.full((3, 1500), float("nan"), device=DEVICE)
    launch("begin_kernel", 3, 1500, bias, residual, begun, 1500, int(has_bias), int(has_residual))
    expected = torch.zeros(3, 1500, device=DEVICE) + (bias if has_bias else 0) + (residual if has_residual else 0)
    assert torch.equal(begun, expected)


@pytest.mark.parametrize("width", [16, 64])
def test_rotary_angles_equal_their_definition_at_far_positions(width: int) -> None:
    positions = torch.tensor(FAR_POSITIONS, device=DEVICE)
    turns = torch.tensor(rotary_turns(RopeConfig(), 2 * width), device=DEVICE)
    cos, sin = (torch.full((len(positions), width), float("nan"), device=DEVICE) for _ in range(2))
    launch("angles_kernel", len(positions), width, positions, turns, cos, sin, width)
    angles = exact_angles(FAR_POSITIONS, inverse_frequencies(RopeConfig(), 2 * width))
    assert float((cos.cpu().double() - angles.cos()).abs().max()) < 1e-6
    assert float((sin.cpu().double() - angles.sin()).abs().max()) < 1e-6


def test_padding_gets_finite_angles() -> None:
    turns = torch.tensor(rotary_turns(RopeConfig(), 32), device=DEVICE)
    cos, sin = (torch.full((1, 16), float("nan"), device=DEVICE) for _ in range(2))
    launch("angles_kernel", 1, 16, torch.tensor([-1], device=DEVICE), turns, cos, sin, 16)
    assert bool((cos.isfinite() & sin.isfinite()).all())
