"""Comparison of two implementations of one model: distances, tolerances and the report of all checks."""

from liger_export.parity.compare import LogitParity
from liger_export.parity.report import Check, ParityReport

__all__ = ["Check", "LogitParity", "ParityReport"]
