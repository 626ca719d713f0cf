"""Tables that the commands print. Each fits into 80 columns or folds long cells."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:  # these modules load PyTorch
    from liger_export.bench import BenchReport, Spread
    from liger_export.evaluate import Evaluation
    from liger_export.metrics import Quality
    from liger_export.package import Manifest
    from liger_export.parity.report import ParityReport
    from liger_export.runtime.profile import Profile

__all__ = [
    "bench_table",
    "contract_table",
    "engine_rows",
    "evaluation_table",
    "heldout_table",
    "megabytes",
    "parity_table",
    "position_tables",
    "profile_table",
    "summary_table",
]


def heldout_table(before: "Quality", after: "Quality") -> Table:
    """Held-out quality before and after finetuning."""
    table = Table("held out", "loss (nats)", "perplexity", "next-token accuracy", box=SIMPLE)
    for name, quality in (("before", before), ("after", after)):
        table.add_row(name, f"{quality.loss:.4f}", f"{quality.perplexity:.2f}", f"{quality.accuracy:.2%}")
    return table


def parity_table(report: "ParityReport", *, details: bool = True) -> Table:
    """Each check of ``validate`` with its bound and verdict, and on request what it was measured over."""
    title = f"{report.package} against {report.reference}"
    table = Table("check", "measured", "bound", "", *(["over"] if details else []), box=SIMPLE, title=title)
    for check in report.checks:
        bound = "" if check.bound is None else f"{'>=' if check.at_least else '<='} {check.bound:.3g}"
        verdict = "" if check.bound is None and check.passed else "[green]ok" if check.passed else "[red]MISSED"
        table.add_row(check.name, _figure(check.value), bound, verdict, *([f"[dim]{check.detail}"] if details else []))
    if not details:
        table.caption, table.caption_justify = "A wider terminal also shows what each check was measured over.", "left"
    return table


def evaluation_table(evaluations: "Sequence[Evaluation]") -> Table:
    """Quality of several models, each compared with the first."""
    table = Table(
        Column("model", overflow="fold"), "", "tokens", "loss", "perplexity", "accuracy", "of first", box=SIMPLE
    )
    for evaluation in evaluations:
        quality, share = evaluation.quality, evaluation.share_of(evaluations[0])
        table.add_row(
            escape(evaluation.model.name),
            f"[dim]{evaluation.model.kind}",
            f"{quality.tokens:,}",
            f"{quality.loss:.4f}",
            f"{quality.perplexity:.2f}",
            f"{quality.accuracy:.2%}",
            "-" if share is None else f"{share:.1%}",
        )
    return table


def position_tables(evaluations: "Sequence[Evaluation]") -> tuple[Table, Table]:
    """Accuracy and perplexity by position in a block."""
    names = [escape(evaluation.model.name) for evaluation in evaluations]
    accuracies = Table("positions", *names, box=SIMPLE, title="accuracy by position", title_justify="left")
    perplexities = Table("positions", *names, box=SIMPLE, title="perplexity by position", title_justify="left")
    for row in zip(*(evaluation.scores.ranges() for evaluation in evaluations), strict=True):
        name = f"{row[0][0].start:,} to {row[0][0].stop - 1:,}"
        accuracies.add_row(name, *(f"{quality.accuracy:.2%}" for _, quality in row))
        perplexities.add_row(name, *(f"{quality.perplexity:.2f}" for _, quality in row))
    return accuracies, perplexities


def bench_table(report: "BenchReport") -> Table:
    """Speed and memory by context length; each cell has a median, and below it the 10th to 90th percentile."""
    title = report.package if report.against is None else f"{report.package} against {report.against}"
    names = ("prefill\ntokens/s", "first\ntoken", "decode\ntokens/s", "peak\nRSS", "carried")
    figures = (Column(name, justify="right", no_wrap=True) for name in names)
    table = Table(Column("at context", no_wrap=True), *figures, box=SIMPLE, title=escape(title))
    for row in report.rows:
        table.add_row(
            f"{row.system}\n[dim]at {row.context:,}",
            _spread(row.prefill_tokens_per_second, _rate),
            _time_spread(row.first_token_seconds),
            _spread(row.decode_tokens_per_second, _rate),
            megabytes(row.peak_rss_bytes.median),
            megabytes(row.memory_bytes),
            end_section=row.system == report.systems[-1],
        )
    table.caption, table.caption_justify = "\n".join(escape(line) for line in report.footnotes), "left"
    return table


def _spread(spread: "Spread | None", text: Callable[[float], str], unit: str = "") -> str:
    if spread is None:
        return "not\nmeasured"
    return f"{text(spread.median)}{unit}\n[dim]{text(spread.p10)}-{text(spread.p90)}"


def _time_spread(seconds: "Spread | None") -> str:
    """Format seconds; medians below one second are given in milliseconds."""
    if seconds is None or seconds.median >= 1:
        return _spread(seconds, _rate, " s")
    return _spread(seconds, lambda value: _rate(1e3 * value), " ms")


def _rate(value: float) -> str:
    """Format a number with three digits, or in thousands."""
    return f"{value / 1e3:.1f}k" if value >= 1e4 else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def profile_table(profile: "Profile") -> Table:
    """The time of a call by operator, with the rate at which weights are read."""
    plurals = ["" if count == 1 else "s" for count in (profile.calls, profile.tokens)]
    calls = f"{profile.calls:,} call{plurals[0]} of {profile.tokens:,} token{plurals[1]}"
    names = ("nodes", "ms", "share", "weights", "GB/s")
    table = Table("operator", *(Column(name, justify="right") for name in names), box=SIMPLE, title=calls)
    for each in profile.operators:
        read = (megabytes(each.weight_bytes), f"{each.weight_bytes / each.seconds / 1e9:.1f}")
        table.add_row(
            each.operator,
            f"{each.nodes}",
            f"{1e3 * each.seconds:.3f}",
            f"{each.seconds / profile.seconds:.1%}",
            *(read if each.weight_bytes else ()),
        )
    table.add_row(
        "[dim]between nodes", "", f"{1e3 * profile.remainder:.3f}", f"{profile.remainder / profile.seconds:.1%}"
    )
    table.add_section()
    table.add_row("a call", "", f"{1e3 * profile.seconds:.3f}", "100.0%")
    table.caption, table.caption_justify = "Mean of the faster half of the calls. Tracing makes each slower.", "left"
    return table


def contract_table(name: str, graph: dict[str, Any]) -> Table:
    """The inputs and outputs of a graph; states of equal shape in several layers share a row."""
    table = Table("", "meaning", title=escape(name), box=SIMPLE)
    in_place = {_of_any_layer(port) for port in graph["in_place"]}
    for kind in ("inputs", "outputs"):
        table.add_row(f"[bold]{kind}", "")
        rows = {
            (_of_any_layer(port["name"]), f"{port['dtype']} [{', '.join(map(str, port['shape']))}]"): port["meaning"]
            for port in graph[kind]
        }
        for (port, tensor), meaning in rows.items():
            note = " May be updated in place." if port in in_place else ""
            table.add_row(f"{port}\n[dim]  {escape(tensor)}", f"[dim]{escape(meaning)}{note}")
        table.add_section()
    return table


def _of_any_layer(name: str) -> str:
    """The name of a state with N for its layer."""
    return re.sub(r"\.\d+\.", ".N.", name)


def engine_rows(manifest: "Manifest") -> list[tuple[str, str]]:
    """Rows for ``summary_table`` on the engines that ``build-engine`` built and compared; none for a package."""
    engine = manifest.engine
    if engine is None:
        return []
    targets = ", ".join(engine.targets) or "any device"
    rows = [("built by", f"{engine.backend} {engine.backend_version} for {targets}")]
    calls = f"one token, and {engine.chunk}" if engine.chunk else "one token"
    rows.append(("calls of", f"{calls}; one sequence"))
    if engine.plugins:
        rows.append(("plugins", f"{', '.join(engine.plugins)}, in calls of one token"))
    rows += [(f"  {what}", precision) for what, precision in engine.precisions.items()]
    for name, figures in engine.graphs.items():
        rows.append((name, f"{megabytes(figures['bytes'])}, built in {figures['seconds']:.1f} s"))
    if engine.check is None:
        return [*rows, ("compared", "no")]
    against = f"with {engine.check['against']} on ONNX Runtime, in {engine.check['activations']}"
    rows.append(("compared", against))
    for check in engine.check["checks"]:
        bound = "" if check["bound"] is None else f" (<= {check['bound']:.3g})"
        rows.append((f"  {check['name']}", f"{check['value']:.1e}{bound}"))
    return rows


def summary_table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """A table of names and values."""
    table = Table(show_header=False, box=SIMPLE, title=escape(title), title_justify="left")
    for name, value in rows:
        table.add_row(name, value)
    return table


def megabytes(nbytes: float) -> str:
    """Format bytes as MB, or as kB below one MB."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}" if abs(value) >= 0.1 else f"{value:.1e}"
