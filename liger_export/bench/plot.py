"""Plots of a report: decoding time and memory against context. matplotlib is imported only when a plot is drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from liger_export.bench.report import BenchReport, Row
from liger_export.bench.timing import Spread
from liger_export.bench.worker import PACKAGE, TRANSFORMER
from liger_export.errors import InputError
from liger_export.extras import required_extra
from liger_export.files import new_file, require_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "require_plot", "save_plot"]

SUFFIXES = (".png", ".svg", ".pdf")
LABELS = {PACKAGE: "liger-export package", TRANSFORMER: "transformer, KV cache"}
COLORS = {PACKAGE: "#1f6fb2", TRANSFORMER: "#c0392b"}
MARKERS = {PACKAGE: "s", TRANSFORMER: "o"}
GREY = "#555555"
DOTS_PER_INCH = 140
MAX_LINEAR_RATIO = 8  # of the largest value to the smallest; above it, the axis is logarithmic
# Parts of a panel's height. Labels are above the data, so that neither hides the other.
LABEL_HEIGHT = 0.09
DATA_HEIGHT = 0.76

Values = Callable[[Row], Spread]


def require_plot(file: Path) -> None:
    """Check that a plot can be drawn and written, before any long work.

    Raises:
        InputError: the file's suffix is not a known image format.
        OutputError: the file cannot be written.
        EnvironmentMismatchError: matplotlib is not installed.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"{file} does not have the suffix of an image format.", f"Use one of {', '.join(SUFFIXES)}.")
    require_writable(file)
    with required_extra("bench", "A plot"):
        import matplotlib.figure  # noqa: F401


def save_plot(report: BenchReport, file: Path) -> None:
    """Draw a report and write it in the format given by the file's suffix."""
    with new_file(file) as partial:
        draw(report).savefig(partial, dpi=DOTS_PER_INCH, format=file.suffix[1:].lower())


def draw(report: BenchReport) -> "Figure":
    """Draw three panels against context on a logarithmic axis: time per token, carried bytes, peak process memory.

    Lines are medians, and bands range from the 10th to the 90th percentile. A hollow marker means that the cache was
    filled with random values.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    memory = [row.memory_bytes for row in report.rows]
    peaks = [row.peak_rss_bytes.p90 for row in report.rows]
    carried_unit, carried = _unit(max(memory))
    peak_unit, peak = _unit(max(peaks))
    _panel(panels[0], report, "Time per token", "ms", _milliseconds)
    _panel(
        panels[1],
        report,
        "Carried state or cache",
        carried_unit,
        lambda row: _constant(row.memory_bytes / carried),
    )
    _panel(panels[2], report, "Peak memory", peak_unit, lambda row: row.peak_rss_bytes.scaled(1 / peak))
    for panel, unit in zip(panels, ("ms", carried_unit, peak_unit), strict=True):
        _label_lines(panel, unit)
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=9, color=GREY)
    return figure


def _panel(panel: "Axes", report: BenchReport, title: str, unit: str, values: Values) -> None:
    """Draw one line and band per system. The axis starts at zero, or is logarithmic if values differ widely."""
    contexts = sorted({row.context for row in report.rows})
    for name in report.systems:
        rows = report.of(name)
        spreads = [values(row) for row in rows]
        places = [row.context for row in rows]
        panel.fill_between(
            places, [s.p10 for s in spreads], [s.p90 for s in spreads], color=COLORS[name], alpha=0.15, linewidth=0
        )
        (line,) = panel.plot(places, [s.median for s in spreads], color=COLORS[name], label=LABELS[name], linewidth=2)
        line.set_gid(name)
        for row, spread in zip(rows, spreads, strict=True):
            face = "white" if row.first_token_seconds is None else COLORS[name]
            panel.plot(
                row.context, spread.median, MARKERS[name], color=COLORS[name], markerfacecolor=face, markersize=5
            )
    panel.set_title(f"{title} ({unit})", loc="left", fontsize=10)
    panel.set_xlabel("tokens of context", fontsize=9, color=GREY)
    panel.set_xscale("log", base=2)
    panel.set_xticks(contexts, [f"{context:,}" for context in contexts])
    medians, top = [values(row).median for row in report.rows], max(values(row).p90 for row in report.rows)
    if max(medians) > MAX_LINEAR_RATIO * min(medians):  # from zero, the smallest would lie on the axis itself
        bottom = min(medians) / 2
        panel.set_yscale("log")
        panel.set_ylim(bottom, bottom * (top / bottom) ** (1 / DATA_HEIGHT))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    else:
        panel.set_ylim(0, top / DATA_HEIGHT)
    panel.minorticks_off()
    panel.margins(x=0.12)
    panel.grid(axis="y", alpha=0.25)
    panel.tick_params(labelsize=9, length=3, colors=GREY)
    panel.spines[["top", "right"]].set_visible(False)


def _label_lines(panel: "Axes", unit: str) -> None:
    """Write each line's name and last value above the data, in the order of the last values."""
    lines = [line for line in panel.get_lines() if line.get_gid() is not None]
    ends = [(float(np.asarray(line.get_ydata())[-1]), line) for line in lines]
    for place, (end, line) in enumerate(sorted(ends, key=lambda pair: pair[0]), 1):
        label, height = f"{line.get_label()}: {_figure(end)} {unit}", 0.99 - (len(ends) - place) * LABEL_HEIGHT
        panel.annotate(
            label, (1, height), xycoords="axes fraction", ha="right", va="top", fontsize=9, color=line.get_color()
        )


def _title(report: BenchReport) -> str:
    """The models with their precisions, and the machine."""
    models = {PACKAGE: report.model or report.package, TRANSFORMER: report.against}
    named = [f"{models[name]}: {text}" for name, text in report.precisions.items()]
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    threads = report.settings.threads
    machine = f"{report.machine.processor}, {threads} thread{'s' if threads > 1 else ''}; {versions}"
    return "\n".join([*named, machine])


def _milliseconds(row: Row) -> Spread:
    rate = row.decode_tokens_per_second
    return Spread(1e3 / rate.median, 1e3 / rate.p90, 1e3 / rate.p10)


def _constant(value: float) -> Spread:
    return Spread(value, value, value)


def _unit(value: float) -> tuple[str, float]:
    units: Sequence[tuple[str, float]] = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next(((name, size) for name, size in units if value >= size), units[-1])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
