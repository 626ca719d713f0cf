"""Timing of calls on the CPU, and the spread of repeated measurements."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["Spread", "timed"]

Result = TypeVar("Result")


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """Run a call once. Return its result and the wall-clock time in seconds."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated measurements, with the 10th and 90th percentiles."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize one or more measurements; percentiles are interpolated."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))

    def scaled(self, factor: float) -> "Spread":
        """Multiply by a positive factor, for example to change the unit."""
        return Spread(self.median * factor, self.p10 * factor, self.p90 * factor)

    def text(self, digits: int = 1) -> str:
        """Format as ``median (p10-p90)`` with a number of decimals."""
        return f"{self.median:.{digits}f} ({self.p10:.{digits}f}-{self.p90:.{digits}f})"
