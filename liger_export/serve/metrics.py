"""Metrics for Prometheus."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from liger_export.runtime import Statistics
from liger_export.serve.models import ServedModel
from liger_export.serve.records import Record

__all__ = ["Metrics"]

PREFIX = "liger_export"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
GAUGES = {
    "slots": "Largest number of answers at once.",
    "active": "Answers that have a slot.",
    "queued": "Answers that wait for a slot.",
}
COUNTERS = {
    "requests": "Answers that have got a slot.",
    "prompt_tokens": "Tokens in prompts.",
    "cached_tokens": "Tokens in prompts that were not read, because a state after them was known.",
    "generated_tokens": "Tokens in answers.",
    "steps": "Calls of the model that continued answers.",
}


class Metrics:
    """Counts requests, and reads the schedulers' numbers when they are asked for."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._registry = CollectorRegistry()
        labels = ("path", "model", "status")
        self._requests = Counter(f"{PREFIX}_http_requests", "Requests.", labels, registry=self._registry)
        self._seconds = _histogram("request_seconds", "Time to the end of a response.", self._registry)
        self._first = _histogram("first_piece_seconds", "Time to the first piece of an answer.", self._registry)
        self._registry.register(_Schedulers(models))

    def count(self, record: Record, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.path, record.model or "", str(record.status or 0)).inc()
        if record.model is not None:
            self._seconds.labels(record.model).observe(seconds)
        if record.model is not None and record.first_seconds is not None:
            self._first.labels(record.model).observe(record.first_seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Schedulers(Collector):
    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        statistics = {name: model.scheduler.statistics for name, model in self._models.items()}
        for field, text in GAUGES.items():
            yield _family(GaugeMetricFamily, field, text, statistics)
        for field, text in COUNTERS.items():
            yield _family(CounterMetricFamily, field, text, statistics)
        stored = GaugeMetricFamily(f"{PREFIX}_stored_states", "States of earlier texts.", labels=["model"])
        held = GaugeMetricFamily(f"{PREFIX}_stored_bytes", "Bytes of such states in memory.", labels=["model"])
        for name, model in self._models.items():
            stored.add_metric([name], len(model.store))
            held.add_metric([name], model.store.nbytes)
        yield from (stored, held)


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    field: str,
    text: str,
    statistics: Mapping[str, Statistics],
) -> Metric:
    family = kind(f"{PREFIX}_{field}", text, labels=["model"])
    for name, numbers in statistics.items():
        family.add_metric([name], getattr(numbers, field))
    return family


def _histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"{PREFIX}_{name}", text, ("model",), buckets=SECONDS, registry=registry)
