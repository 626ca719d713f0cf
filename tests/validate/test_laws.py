"""Single laws, measured on fake sessions."""

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest

from liger_export.parity import Check
from liger_export.parity.compare import mean_kl
from liger_export.parity.tolerances import float32_decay_rounding, float32_rounding, tolerances_of
from liger_export.precision import Precision
from liger_export.validate import run
from liger_export.validate.laws import Subjects, check_drift, measure_noise

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


@dataclass
class Chaotic:
    """A session whose logits have an error that depends on every bit of its state, as where activations are rounded."""

    exact: npt.NDArray[np.float32]  # [T, vocab_size]
    error: float
    tensors: dict[str, npt.NDArray[np.float32]] = field(default_factory=lambda: {"state": np.ones(8, np.float32)})

    def reset(self) -> None:
        self.tensors = {"state": np.ones(8, np.float32)}

    def state(self) -> "Chaotic":
        return self

    def load_state(self, state: "Chaotic") -> None:
        self.tensors = state.tensors

    def all_logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        random = np.random.default_rng(crc32(self.tensors["state"].tobytes()))
        exact = self.exact[tokens]
        return exact + self.error * random.standard_normal(exact.shape, np.float32)


def noise_of(error: float, own: float) -> tuple[npt.NDArray[np.float64], Check, Subjects]:
    """The noise of a package whose roundings are off by ``error``, and whose weights are off by ``own``."""
    exact, weights = np.random.default_rng(1).standard_normal((2, 600, 32)).astype(np.float32)
    reference = SimpleNamespace(logits=lambda tokens: exact[tokens] + own * weights[tokens])
    subjects = Subjects(Chaotic(exact, error), reference, tolerances_of(Precision(weights="int4"), MATRICES))  # type: ignore[arg-type]
    return *measure_noise(subjects, np.arange(600), 8), subjects


def test_ways_to_compute_the_same_may_differ_by_twice_the_noise_of_rounding() -> None:
    noise, check, subjects = noise_of(error=0.1, own=0.3)
    assert check.passed
    assert noise.shape == (512,)
    exact = np.random.default_rng(2).standard_normal((512, 32))
    one, other, third = exact + 0.1 * np.random.default_rng(3).standard_normal((3, *exact.shape))
    assert noise.mean() == pytest.approx(mean_kl(one, other), rel=0.1)  # that of two independent errors

    strict, tolerances = subjects.tolerances, subjects.tolerances.allowing(noise)
    assert not strict.check("law", one, other).passed
    assert tolerances.check("law", one, other).passed
    assert tolerances.check("law", one[0], other[0]).passed
    assert not tolerances.check("law", exact + 3 * (third - exact), other).passed
    assert not tolerances.check("law", exact[1], other[0]).passed  # the logits of another position


def test_without_noise_the_bounds_stay() -> None:
    noise, check, subjects = noise_of(error=0.0, own=0.3)
    assert check.value == 0
    assert subjects.tolerances.allowing(noise) == subjects.tolerances


def test_noise_far_beyond_the_distance_from_pytorch_is_a_fault() -> None:
    """A package whose first result is right by chance, and whose second is not, must not loosen its own bounds."""
    exact = np.random.default_rng(1).standard_normal((600, 32)).astype(np.float32)
    package = Chaotic(exact, 0.5)
    expected = np.concatenate([exact[:8], package.all_logits(list(range(8, 520)))])
    reference = SimpleNamespace(logits=lambda tokens: expected)
    subjects = Subjects(package, reference, tolerances_of(Precision(weights="int4"), MATRICES))  # type: ignore[arg-type]
    _, check = measure_noise(subjects, np.arange(600), 8)
    assert not check.passed
