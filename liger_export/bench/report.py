"""What was measured, as the table, the picture and the JSON show it."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liger_export.bench.contenders import FILLED_ABOVE
from liger_export.bench.settings import BenchSettings

__all__ = ["BenchReport", "Machine", "Row", "Sample", "Spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the 10th and 90th percentile around it."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one or more measurements, percentiles interpolated."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))


@dataclass(frozen=True, slots=True)
class Sample:
    """One process's measurement of one contender at one context.

    Attributes:
        prefill_seconds: from the context to the first token chosen; None where the cache was filled instead.
        step_seconds: per decoded token.
        memory_bytes: carried from token to token after the context: the state, or the keys and values.
        peak_rss_bytes: the process's peak from the end of loading to the last token.
    """

    prefill_seconds: float | None
    step_seconds: tuple[float, ...]
    memory_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one context, over all repeats.

    Attributes:
        contender: ``package`` or ``transformer``.
        context: tokens before decoding.
        prefill_tokens_per_second: over processes; None where the cache was filled with random values.
        first_token_seconds: the same time, not divided.
        decode_tokens_per_second: over tokens of all processes.
        peak_rss_bytes: over processes.
        memory_bytes: state or KV cache after ``context`` tokens.
    """

    contender: str
    context: int
    prefill_tokens_per_second: Spread | None
    first_token_seconds: Spread | None
    decode_tokens_per_second: Spread
    peak_rss_bytes: Spread
    memory_bytes: int

    @classmethod
    def of(cls, contender: str, context: int, samples: Sequence[Sample]) -> "Row":
        """Summarize one or more samples."""
        prefills = [sample.prefill_seconds for sample in samples if sample.prefill_seconds is not None]
        steps = [seconds for sample in samples for seconds in sample.step_seconds]
        return cls(
            contender,
            context,
            Spread.of([context / seconds for seconds in prefills]) if prefills else None,
            Spread.of(prefills) if prefills else None,
            Spread.of([1 / seconds for seconds in steps]),
            Spread.of([sample.peak_rss_bytes for sample in samples]),
            max(sample.memory_bytes for sample in samples),
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran.

    Attributes:
        processor: its model name.
        versions: of the libraries that ran the models.
    """

    processor: str
    versions: dict[str, str]


def processor_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True, slots=True)
class BenchReport:
    """One run of ``bench``.

    Attributes:
        package: name of the package directory.
        against: name of the transformer's directory, if any.
        precisions: by contender, how it computes.
        machine: where it ran.
        settings: what was asked for.
        rows: by context, then contender.
        notes: what a reader must know beside the figures.
    """

    package: str
    against: str | None
    precisions: dict[str, str]
    machine: Machine
    settings: BenchSettings
    rows: tuple[Row, ...] = field(default=())
    notes: tuple[str, ...] = ()

    def of(self, contender: str) -> tuple[Row, ...]:
        """One contender's rows, contexts rising."""
        return tuple(row for row in self.rows if row.contender == contender)

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names in the order they were measured."""
        return tuple(dict.fromkeys(row.contender for row in self.rows))

    @property
    def footnotes(self) -> tuple[str, ...]:
        """How it was measured and what the figures leave out, a sentence each."""
        settings, versions = self.settings, ", ".join(f"{name} {text}" for name, text in self.machine.versions.items())
        lines = [
            f"{self.machine.processor}, threads: {settings.threads}; {versions}.",
            f"Median (10th-90th percentile) over {settings.repeats} fresh processes and {settings.tokens} tokens "
            "decoded in each; batch 1.",
            "Peak RSS: the whole process with its libraries, after loading. Carried: the state (one set; a session "
            "holds two) or the keys and values, after the context.",
        ]
        lines += [f"{name}: {text}." for name, text in self.precisions.items()]
        if any(row.first_token_seconds is None for row in self.rows):
            lines.append(
                f"Beyond {FILLED_ABOVE:,} tokens the transformer's cache is filled with random keys and values, and "
                "its prefill is not measured, in time or memory."
            )
        return (*lines, *self.notes)

    def to_json(self) -> str:
        """All figures; times in seconds, memory in bytes, null where not measured."""
        values: dict[str, Any] = asdict(self)
        return json.dumps({**values, "footnotes": self.footnotes}, indent=1) + "\n"
