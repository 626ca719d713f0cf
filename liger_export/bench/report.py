"""Results of a benchmark, as shown by the table, the plot and the JSON report."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from liger_export.bench.settings import BenchSettings
from liger_export.bench.systems import FILLED_ABOVE
from liger_export.bench.timing import Spread

__all__ = ["BenchReport", "Machine", "Row", "Sample", "processor_name"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Measurement of one system at one context by one process.

    Attributes:
        prefill_seconds: time to read the context and choose the first token; None if the cache was filled instead.
        step_seconds: time per decoded token.
        memory_bytes: bytes carried from token to token after the context: the state, or the keys and values.
        peak_rss_bytes: the process's peak resident memory between the end of loading and the last token.
    """

    prefill_seconds: float | None
    step_seconds: tuple[float, ...]
    memory_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """Summary of one system at one context over all repeats.

    Attributes:
        system: ``package`` or ``transformer``.
        context: tokens read before decoding.
        prefill_tokens_per_second: spread over processes; None if the cache was filled with random values.
        first_token_seconds: time to the first token, spread over processes; None as above.
        decode_tokens_per_second: spread over the tokens of all processes.
        peak_rss_bytes: spread over processes.
        memory_bytes: size of the state or KV cache after ``context`` tokens.
    """

    system: str
    context: int
    prefill_tokens_per_second: Spread | None
    first_token_seconds: Spread | None
    decode_tokens_per_second: Spread
    peak_rss_bytes: Spread
    memory_bytes: int

    @classmethod
    def of(cls, system: str, context: int, samples: Sequence[Sample]) -> "Row":
        """Summarize one or more samples."""
        prefills = [sample.prefill_seconds for sample in samples if sample.prefill_seconds is not None]
        steps = [seconds for sample in samples for seconds in sample.step_seconds]
        return cls(
            system,
            context,
            Spread.of([context / seconds for seconds in prefills]) if prefills else None,
            Spread.of(prefills) if prefills else None,
            Spread.of([1 / seconds for seconds in steps]),
            Spread.of([sample.peak_rss_bytes for sample in samples]),
            max(sample.memory_bytes for sample in samples),
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that the benchmark ran on.

    Attributes:
        processor: model name of the processor.
        versions: versions of the libraries that ran the models.
    """

    processor: str
    versions: dict[str, str]


def processor_name() -> str:
    """Return the processor's model name, or its architecture if the name is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Results of one run of ``bench``.

    Attributes:
        package: name of the package directory.
        against: name of the transformer's directory, if any.
        precisions: precision and library of each system.
        machine: the machine it ran on.
        settings: the settings of the run.
        rows: results, ordered by context, then by system.
        notes: remarks needed to interpret the results.
        model: the package's model: its type, size and checkpoint.
    """

    package: str
    against: str | None
    precisions: dict[str, str]
    machine: Machine
    settings: BenchSettings
    rows: tuple[Row, ...] = field(default=())
    notes: tuple[str, ...] = ()
    model: str = ""

    def of(self, system: str) -> tuple[Row, ...]:
        """Return one system's rows, in ascending order of context."""
        return tuple(row for row in self.rows if row.system == system)

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the systems, in the order they were measured."""
        return tuple(dict.fromkeys(row.system for row in self.rows))

    @property
    def footnotes(self) -> tuple[str, ...]:
        """Description of the measurement and of what it excludes, one sentence per line."""
        settings, versions = self.settings, ", ".join(f"{name} {text}" for name, text in self.machine.versions.items())
        processes = "1 fresh process" if settings.repeats == 1 else f"{settings.repeats} fresh processes"
        lines = [
            f"{self.machine.processor}, threads: {settings.threads}; {versions}.",
            f"Median (10th-90th percentile) over {processes}, each decoding {settings.tokens} tokens; batch 1.",
            "Peak RSS: the whole process including its libraries, after loading. Carried: the state (one set of "
            "buffers) or the keys and values, after the context.",
        ]
        lines += [f"{name}: {text}." for name, text in self.precisions.items()]
        if any(row.first_token_seconds is None for row in self.rows):
            lines.append(
                f"Above {FILLED_ABOVE:,} tokens the transformer's cache is filled with random keys and values; neither "
                "the time nor the memory of its prefill is measured."
            )
        return (*lines, *self.notes)

    def to_json(self) -> str:
        """Format all results as JSON: times in seconds, memory in bytes, null where nothing was measured."""
        values: dict[str, Any] = asdict(self)
        rows = [{"contender": row.pop("system"), **row} for row in values["rows"]]  # the key in the file format
        return json.dumps({**values, "rows": rows, "footnotes": self.footnotes}, indent=1) + "\n"
