"""Comparing two implementations of one model: distances, tolerances, and the report of the checks."""

from liger_export.parity.report import Check, LogitParity, ParityReport

__all__ = ["Check", "LogitParity", "ParityReport"]
