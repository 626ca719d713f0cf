"""Plots of a report: decoding time and memory against context. matplotlib is imported only when a plot is drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liger_export.bench.report import BenchReport, Row
from liger_export.bench.timing import Spread
from liger_export.bench.worker import PACKAGE, TRANSFORMER
from liger_export.errors import EnvironmentMismatchError, InputError
from liger_export.files import require_writable

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
LABEL_DISTANCE = 0.12  # smallest distance between two labels, relative to the panel's height

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
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvironmentMismatchError(
            f"{error.name} is not installed, but plots need it.", "Run: pip install 'liger-export[bench]'"
        ) from error


def save_plot(report: BenchReport, file: Path) -> None:
    """Draw a report and write it in the format given by the file's suffix."""
    draw(report).savefig(file, dpi=DOTS_PER_INCH)


def draw(report: BenchReport) -> "Figure":
    """Draw three panels against context on a logarithmic axis: time per token, carried bytes, peak process memory.

    Lines are medians, and bands range from the 10th to the 90th percentile. A hollow marker means that the cache was
    filled with random values.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    memory = [row.memory_bytes for row in report.rows]
    peaks = [row.peak_rss_bytes.p90 for row in report.rows]
    carried_unit, carried = _unit(max(memory))
    peak_unit, peak = _unit(max(peaks))
    _panel(panels[0], report, "Time to decode a token", "ms", _milliseconds)
    _panel(
        panels[1],
        report,
        "Carried from token to token",
        carried_unit,
        lambda row: _constant(row.memory_bytes / carried),
    )
    _panel(panels[2], report, "Peak memory of the process", peak_unit, lambda row: row.peak_rss_bytes.scaled(1 / peak))
    for panel, unit in zip(panels, ("ms", carried_unit, peak_unit), strict=True):
        _label_ends(panel, unit)
    figure.supxlabel("tokens of context", fontsize=10, color=GREY)
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
    panel.set_title(f"{title} ({unit})", loc="left", fontsize=11)
    panel.set_xscale("log", base=2)
    panel.set_xticks(contexts, [f"{context:,}" for context in contexts])
    medians, top = [values(row).median for row in report.rows], max(values(row).p90 for row in report.rows)
    if max(medians) > MAX_LINEAR_RATIO * min(medians):  # from zero, the smallest would lie on the axis itself
        panel.set_yscale("log")
        panel.set_ylim(min(medians) / 2, top * 3)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    else:
        panel.set_ylim(0, top * 1.25)
    panel.minorticks_off()
    panel.margins(x=0.12)
    panel.grid(axis="y", alpha=0.25)
    panel.tick_params(labelsize=9, length=3, colors=GREY)
    panel.spines[["top", "right"]].set_visible(False)


def _label_ends(panel: "Axes", unit: str) -> None:
    """Write each line's name and last value above its end, without overlap."""
    from matplotlib.patheffects import withStroke

    ends: list[tuple[float, Any]] = []
    for line in panel.get_lines():
        if line.get_gid() is not None:
            _, height = panel.transAxes.inverted().transform(
                panel.transData.transform(np.asarray(line.get_xydata())[-1])
            )
            ends.append((float(height), line))
    lowest = 0.0
    for height, line in sorted(ends, key=lambda end: end[0]):
        height = max(height + 0.04, lowest)
        lowest = height + LABEL_DISTANCE
        label = f"{line.get_label()}: {_figure(float(line.get_ydata()[-1]))} {unit}"
        panel.annotate(
            label, (1, height), xycoords="axes fraction", ha="right", va="bottom", fontsize=9, color=line.get_color(),
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip


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
