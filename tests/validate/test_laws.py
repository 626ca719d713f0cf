"""Single laws, measured on fake sessions."""

from types import SimpleNamespace

import numpy as np
import pytest

from liger_export.parity import Check
from liger_export.parity.tolerances import tolerances_of
from liger_export.precision import Precision
from liger_export.validate.laws import Subjects, check_drift


def late_drift(weights: str, distance: float) -> Check:
    """Drift of a package whose steps are exact for 128 tokens and off by ``distance`` in the last 128."""
    logits = np.random.default_rng(0).standard_normal((512, 16)).astype(np.float32)
    stepped = logits.copy()
    stepped[-128:] *= 1 + distance
    session = SimpleNamespace(reset=lambda: None, all_logits=lambda tokens: logits, step=lambda token: stepped[token])
    tolerances = tolerances_of(Precision(weights=weights), ["model.layers.0.mlp.up_proj.weight"])
    *_, drift = check_drift(Subjects(session, None, tolerances), np.arange(512), [8], 512)  # type: ignore[arg-type]
    return drift


@pytest.mark.parametrize(("weights", "bits"), [("fp16", 11), ("bf16", 8), ("int8", 8), ("int4", 8)])
def test_drift_below_one_rounding_is_not_counted(weights: str, bits: int) -> None:
    assert late_drift(weights, 1.9 * 2**-bits).passed
    assert not late_drift(weights, 2.1 * 2**-bits).passed
