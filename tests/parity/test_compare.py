"""Distances between logits."""

import numpy as np
import pytest

from liger_export.parity import LogitParity
from liger_export.parity.compare import mean_kl, relative_l2, top1_agreement


def test_logit_figures_equal_their_definitions() -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((6, 5)).astype(np.float32)
    measured = reference + 0.1 * random.standard_normal((6, 5)).astype(np.float32)
    targets = np.array([0, 4, 2, 2, 1])
    parity = LogitParity()
    parity.add_block(measured[:3], reference[:3], targets[:3])
    parity.add_block(measured[3:], reference[3:], targets[3:])
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(1, keepdims=True) for x in (reference, measured))
    assert parity.relative_l2 == pytest.approx(relative_l2(measured, reference))
    assert parity.kl_sum == pytest.approx((p * np.log(p / q)).sum())
    assert parity.mean_kl == pytest.approx(mean_kl(measured, reference))
    assert parity.top1_equal == (p.argmax(1) == q.argmax(1)).sum()
    assert parity.top1_agreement == pytest.approx(top1_agreement(measured, reference))
    assert parity.max_abs == pytest.approx(np.abs(measured - reference).max())
    assert parity.reference_nll == pytest.approx(-np.log(p[np.arange(5), targets]).sum())
    assert parity.reference_perplexity == pytest.approx(np.exp(parity.reference_nll / 5))
    assert (parity.positions, parity.scored) == (6, 5)


def test_nan_logits_give_nan_distances() -> None:
    parity = LogitParity()
    logits = np.full((2, 3), np.nan, dtype=np.float32)
    parity.add_block(logits, np.ones_like(logits), np.array([0, 1]))
    assert np.isnan(parity.relative_l2)
    assert np.isnan(parity.max_abs)
