"""The parity report: what was measured, against which bound, and whether it held."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Check", "LogitParity", "ParityReport"]


@dataclass(frozen=True, slots=True)
class Check:
    """One measured value and its bound.

    Attributes:
        name: what was measured.
        value: the measurement.
        bound: the largest value allowed (the smallest, if ``at_least``); None for a figure that is only reported.
        at_least: whether the bound is a lower one.
        detail: where or how it was measured.
    """

    name: str
    value: float
    bound: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the bound holds; a value that is not a number never passes."""
        if self.bound is None:
            return self.value == self.value
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Every check of one run of ``validate``.

    Attributes:
        package: name of the package directory.
        reference: name of the checkpoint directory and its adapters.
        lowering: which of the package's graphs was measured.
        device: where it ran: ``cpu``, ``cuda``, or ``rounded.ROUNDED``.
        versions: libraries that took part.
        manifest_sha256: of the manifest that was validated.
        checks: in the order they ran.
    """

    package: str
    reference: str
    lowering: str
    device: str
    manifest_sha256: str
    versions: dict[str, str]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every bound held."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """The report as JSON, each check with its verdict."""
        values: dict[str, Any] = asdict(self)
        values["checks"] = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return json.dumps({"passed": self.passed, **values}, indent=1) + "\n"


@dataclass(slots=True)
class LogitParity:
    """Sums over positions that the logit figures are made of; grows by blocks, so no long tensor is kept.

    ``kl`` is KL(reference || measured) in nats; ``top1`` counts equal first choices.
    """

    squared_error: float = 0.0
    squared_reference: float = 0.0
    max_abs: float = 0.0
    kl: float = 0.0
    top1: int = 0
    positions: int = 0
    reference_nll: float = 0.0
    measured_nll: float = 0.0
    scored: int = 0

    @property
    def relative_l2(self) -> float:
        """Error over reference, in the 2-norm over every position."""
        return float((self.squared_error / self.squared_reference) ** 0.5) if self.squared_reference else float("nan")
