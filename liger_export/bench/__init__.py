"""Speed and memory of a package by context length, next to a transformer with its KV cache."""

from liger_export.bench.measure import bench
from liger_export.bench.plot import require_plot, save_plot
from liger_export.bench.report import BenchReport, Row
from liger_export.bench.settings import BenchSettings, parse_against, parse_contexts
from liger_export.bench.timing import Spread

__all__ = [
    "BenchReport",
    "BenchSettings",
    "Row",
    "Spread",
    "bench",
    "parse_against",
    "parse_contexts",
    "require_plot",
    "save_plot",
]
