"""The outcomes of a fuzzer's cases, and the table that every fuzzer prints."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Counts", "Outcome"]


class Outcome(StrEnum):
    """The outcome of a case. Only the first two are right."""

    REFUSED = "refused"
    SAME = "same answer"
    WRONG = "wrong"
    RAW = "raw"
    CRASH = "crash"
    HANG = "hang"
    MEMORY = "memory"


@dataclass
class Counts:
    """Outcomes by the kind of case, and a line for each fault with the command that repeats it."""

    by_kind: defaultdict[str, Counter[Outcome]] = field(default_factory=lambda: defaultdict(Counter))
    faults: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: Outcome, fault: str = "") -> None:
        self.by_kind[kind][outcome] += 1
        if outcome not in (Outcome.REFUSED, Outcome.SAME):
            self.faults.append(f"{kind}: {outcome}: {fault}")

    def total(self, outcome: Outcome | None = None) -> int:
        """Return the number of cases with an outcome, or of all cases."""
        return sum(row[outcome] if outcome else row.total() for row in self.by_kind.values())

    def table(self) -> str:
        names = [*sorted(self.by_kind), "all"]
        rows = [["", *Outcome]]
        for name in names[:-1]:
            rows.append([name, *(f"{self.by_kind[name][outcome]:,}" for outcome in Outcome)])
        rows.append(["all", *(f"{self.total(outcome):,}" for outcome in Outcome)])
        width = max(map(len, names)) + 2
        return "\n".join(f"{row[0]:{width}}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows)
