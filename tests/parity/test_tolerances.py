"""Bounds by precision."""

from liger_export.parity import LogitParity
from liger_export.parity.tolerances import tolerances_of
from liger_export.precision import Precision


def test_weights_rounded_too_coarsely_miss_the_perplexity_bound() -> None:
    parity = LogitParity(measured_nll=1.041, reference_nll=1.0, scored=1, squared_reference=1.0, positions=1)
    checks = tolerances_of(Precision(weights="int4"), ["model.embed_tokens.weight"]).logit_checks(parity, "")
    assert [check.name for check in checks if not check.passed] == ["perplexity: increase"]
