"""Cosines and sines of positions, against exact arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liger_export.config import RopeConfig, inverse_frequencies, rotary_turns
from liger_export.ops import cos_and_sin, rotary_angles
from tests.angles import FAR_POSITIONS, exact_angles

ROPES = {
    "default": RopeConfig(),
    "linear": RopeConfig(10_000.0, "linear", 4.0),
    "llama3": RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192),
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=list(ROPES))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 4e-7), (torch.float64, 2e-12)])
def test_angles_are_exact_at_any_position(rope: RopeConfig, dtype: torch.dtype, bound: float) -> None:
    expected = exact_angles(FAR_POSITIONS, inverse_frequencies(rope, 64))
    cos, sin = cos_and_sin(torch.tensor([FAR_POSITIONS]), torch.tensor(rotary_turns(rope, 64)), dtype)
    assert cos.dtype == sin.dtype == dtype
    assert float((cos[0].double() - expected.cos()).abs().max()) < bound
    assert float((sin[0].double() - expected.sin()).abs().max()) < bound


@given(position=st.integers(0, 2**63 - 1), theta=st.floats(1.0, 1e8), factor=st.floats(0.01, 100.0))
def test_any_position_and_any_frequency_give_exact_angles(position: int, theta: float, factor: float) -> None:
    rope = RopeConfig(theta, "linear", factor)
    (expected,) = exact_angles([position], inverse_frequencies(rope, 8))
    cos, sin = cos_and_sin(torch.tensor([[position]]), torch.tensor(rotary_turns(rope, 8)), torch.float64)
    assert float((cos[0, 0] - expected.cos()).abs().max()) < 2e-12
    assert float((sin[0, 0] - expected.sin()).abs().max()) < 2e-12


def test_early_angles_are_those_of_float32_products() -> None:
    positions = torch.arange(64)
    angles = positions[:, None].float() * torch.from_numpy(inverse_frequencies(RopeConfig(), 64))
    cos, sin = cos_and_sin(positions[None], torch.tensor(rotary_turns(RopeConfig(), 64)), torch.float32)
    assert float((cos[0] - angles.cos()).abs().max()) < 4e-6  # half of a float32's last bit at 64 radians
    assert float((sin[0] - angles.sin()).abs().max()) < 4e-6


def test_the_operator_and_its_compiled_form_compute_the_same() -> None:
    positions, turns = torch.tensor([FAR_POSITIONS]), torch.tensor(rotary_turns(RopeConfig(), 64))
    expected = torch.stack(cos_and_sin(positions, turns, torch.float32))
    assert torch.equal(torch.stack(rotary_angles(positions, turns)), expected)
    compiled = torch.compile(rotary_angles, backend="aot_eager", fullgraph=True)
    assert torch.equal(torch.stack(compiled(positions, turns)), expected)


def test_padding_gets_finite_values() -> None:
    cos, sin = rotary_angles(torch.tensor([[0, -1]]), torch.tensor(rotary_turns(RopeConfig(), 8)))
    assert bool((cos.isfinite() & sin.isfinite()).all())
