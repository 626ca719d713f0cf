"""A ``Progress`` for tests that records every report."""


class Recorder:
    """Record of the units done, the total and the current stage, at each new stage and each advance."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, str]] = []
        self.stages: list[str] = []
        self._done, self._total = 0, 0

    def stage(self, name: str) -> None:
        self.stages.append(name)
        self._record()

    def start(self, total: int) -> None:
        self._done, self._total = 0, total

    def advance(self, count: int) -> None:
        self._done += count
        self._record()

    def _record(self) -> None:
        self.reports.append((self._done, self._total, self.stages[-1] if self.stages else ""))
