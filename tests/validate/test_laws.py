"""Single laws, measured on fake sessions."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from liger_export.parity import Check
from liger_export.parity.tolerances import float32_decay_rounding, float32_rounding, tolerances_of
from liger_export.precision import Precision
from liger_export.validate import run
from liger_export.validate.laws import Subjects, check_drift

Array = npt.NDArray[np.float64]
LENGTH = 512
MATRICES = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(58)]  # as many as the shipped model has


def fake_session(expected: Array, error: Array) -> Any:
    """A session whose step at each position is off by a relative error; one call for a whole text is exact.

    Args:
        expected: logits by token, [T, vocab_size].
        error: relative error by position, [T].
    """
    position = count()

    def reset() -> None:
        nonlocal position
        position = count()

    def step(token: int) -> Array:
        return expected[token] * (1 + error[next(position)])

    return SimpleNamespace(reset=reset, all_logits=lambda tokens: expected[tokens], step=step)


def drift_of(weights: str, error: Array, loud: slice = slice(0), loudness: float = 0.0) -> Check:
    """Drift of a package whose steps are off by a relative error by position, and tokens ``loud`` by another."""
    expected = np.random.default_rng(0).standard_normal((len(error), 16))
    session = fake_session(expected, error)
    exact_step = session.step
    session.step = lambda token: exact_step(token) * (1 + loudness * (token in range(len(error))[loud]))
    reference = SimpleNamespace(logits=lambda tokens: expected[tokens])
    tolerances = tolerances_of(Precision(weights=weights), MATRICES, recurrent_layers=8, recurrent_weight=0.5)
    *_, drift = check_drift(Subjects(session, reference, tolerances), np.arange(len(error)), [8], len(error))  # type: ignore[arg-type]
    return drift


def late_drift(weights: str, distance: float) -> Check:
    """Drift of a package whose steps are exact for 128 tokens and off by ``distance`` in the last 128."""
    return drift_of(weights, np.where(np.arange(LENGTH) < LENGTH - 128, 0.0, distance))


@pytest.mark.parametrize(("weights", "bits"), [("fp16", 11), ("bf16", 8), ("int8", 8), ("int4", 8)])
def test_drift_below_one_rounding_is_not_counted(weights: str, bits: int) -> None:
    assert late_drift(weights, 1.9 * 2**-bits).passed
    assert not late_drift(weights, 2.1 * 2**-bits).passed


def test_the_float32_floor_without_a_history_is_the_rounding_of_one_step() -> None:
    """The shipped model has 58 matrices; blocks of 128 of its steps differ from PyTorch by 5.7e-7 to 8.9e-7."""
    assert float32_rounding(58) == pytest.approx(7.862e-7, rel=1e-3)


def test_decays_round_by_their_share_of_a_unit_and_walk_at_random() -> None:
    gates = -np.random.default_rng(0).uniform(1e-6, 0.05, 10_000)
    errors = np.exp(gates).astype(np.float32) / np.exp(gates) - 1
    walks = np.exp(gates).astype(np.float32).reshape(100, 100).prod(1, dtype=float) / np.exp(
        gates.reshape(100, 100).sum(1)
    )
    one_layer = float32_decay_rounding(1, 1.0)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(one_layer, rel=0.3)
    assert np.sqrt(np.mean((walks - 1) ** 2)) == pytest.approx(one_layer * 10, rel=0.3)


def test_float32_noise_grows_with_the_square_root_of_the_steps() -> None:
    tolerances = tolerances_of(Precision(), MATRICES, recurrent_layers=8, recurrent_weight=0.5)
    noise = np.hypot(7.862e-7, 2**-24 / np.sqrt(12) * 0.5 * np.sqrt(8 * LENGTH))
    assert tolerances.noise_after(0) == pytest.approx(7.862e-7, rel=1e-3)
    assert tolerances.noise_after(LENGTH) == pytest.approx(noise, rel=1e-3)
    assert late_drift("fp32", 1.9 * noise).passed
    assert not late_drift("fp32", 2.1 * noise).passed


@pytest.mark.parametrize("weights", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_tokens_that_round_more_are_not_drift(weights: str) -> None:
    """The last tokens are off by 5e-6, or 5 roundings, at any position."""
    loudness = {"fp32": 5e-6, "fp16": 5 * 2**-11}.get(weights, 5 * 2**-8)
    check = drift_of(weights, np.zeros(LENGTH), slice(-128, None), loudness)
    assert check.value == pytest.approx(1, rel=1e-6)
    assert not late_drift(weights, loudness).passed


@pytest.mark.parametrize("per_step", [1e-6, 1e-8, 2e-9])
def test_a_sum_that_decays_wrongly_drifts(per_step: float) -> None:
    """Every step loses a share of a sum of equal terms, which must not decay: the error grows with the position."""
    kept = np.cumsum((1 - per_step) ** np.arange(4096)) / np.arange(1, 4097)
    assert not drift_of("fp32", kept - 1).passed


def test_positions_that_are_off_drift() -> None:
    """Positions computed with a relative error of 1e-9 are off by 4e-6 after 4,096 steps."""
    assert not drift_of("fp32", 1e-9 * np.arange(4096)).passed
    assert drift_of("fp32", 1e-10 * np.arange(4096)).passed  # 4e-7: less than one step rounds


def test_a_nan_among_the_first_steps_is_not_hidden() -> None:
    assert not drift_of("fp32", np.where(np.arange(LENGTH) == 5, np.nan, 0.0)).passed


@pytest.mark.parametrize(
    ("weights", "error", "passes"), [("int8", 0.012, True), ("int4", 0.03, False), ("fp16", 0.03, True)]
)
def test_another_graph_of_an_integer_package_is_at_most_twice_as_far_from_pytorch(
    weights: str, error: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock graph is off by 0.01. A float16 graph is compared with the stock graph itself, within 1e-3 nats."""
    torch, stock, other = np.random.default_rng(0).standard_normal((3, 64, 16)).astype(np.float32)
    stock, other = torch + 0.01 * stock, torch + error * other

    def session(lowering: str, logits: npt.NDArray[np.float32]) -> Any:
        manifest = SimpleNamespace(graphs=["stock", "fused"])
        return SimpleNamespace(lowering=lowering, manifest=manifest, reset=lambda: None, all_logits=lambda _: logits)

    monkeypatch.setattr(run, "open_stock", lambda package: session("stock", stock))
    reference = SimpleNamespace(logits=lambda tokens: torch)
    tolerances = tolerances_of(Precision(weights=weights), MATRICES)
    subjects = Subjects(session("fused", other), reference, tolerances)  # type: ignore[arg-type]
    *_, check = run._check_against_stock(Path(), subjects, np.arange(64))
    assert check.passed is passes
