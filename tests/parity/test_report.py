"""Checks and their verdicts."""

from liger_export.parity import Check, ParityReport


def test_nan_never_passes_and_an_empty_report_fails() -> None:
    nan = float("nan")
    assert not Check("x", nan, 1.0).passed
    assert not Check("x", nan, 1.0, at_least=True).passed
    assert not Check("x", nan).passed
    assert Check("x", 1.0, 1.0).passed
    assert not ParityReport("p", "r", "stock", "cpu", "0", {}).passed
