"""The parity report: each measured value, its bound and the verdict."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Check", "ParityReport"]


@dataclass(frozen=True, slots=True)
class Check:
    """A measured value and its bound.

    Attributes:
        name: the quantity measured.
        value: the measurement.
        bound: the largest value allowed, or the smallest if ``at_least``; None for a value that is only reported.
        at_least: whether ``bound`` is a lower bound.
        detail: where or how the value was measured.
    """

    name: str
    value: float
    bound: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def passed(self) -> bool:
        """True if the bound holds; NaN never passes."""
        if self.bound is None:
            return self.value == self.value
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All checks of one ``validate`` run.

    Attributes:
        package: name of the package directory.
        reference: names of the checkpoint directory and its adapters.
        lowering: the lowering that was measured.
        device: the device it ran on: ``cpu``, ``cuda`` or ``opening.ROUNDED``.
        manifest_sha256: SHA-256 of the manifest that was validated.
        versions: version of each library that took part.
        checks: all checks, in the order they ran.
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
        """True if there are checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """Return the report as JSON, with the verdict of each check."""
        values: dict[str, Any] = asdict(self)
        values["checks"] = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return json.dumps({"passed": self.passed, **values}, indent=1) + "\n"
