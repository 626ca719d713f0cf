"""The tables that the commands print. Each fits 80 columns, or folds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:  # these parts load torch, which not every command needs
    from liger_export.evaluate import Evaluation
    from liger_export.quality import Quality
    from liger_export.validate.report import ParityReport

__all__ = [
    "evaluation_table",
    "heldout_table",
    "megabytes",
    "parity_table",
    "position_tables",
    "summary_table",
]


def heldout_table(before: "Quality", after: "Quality") -> Table:
    """Held-out quality before and after finetuning."""
    table = Table("held out", "loss (nats)", "perplexity", "next-token accuracy", box=SIMPLE)
    for name, quality in (("before", before), ("after", after)):
        table.add_row(name, f"{quality.loss:.4f}", f"{quality.perplexity:.2f}", f"{quality.accuracy:.2%}")
    return table


def parity_table(report: "ParityReport") -> Table:
    """Every check of ``validate`` with its bound and verdict."""
    title = f"{report.package} against {report.reference}"
    table = Table("check", "measured", "bound", "", "over", box=SIMPLE, title=title)
    for check in report.checks:
        bound = "" if check.bound is None else f"{'>=' if check.at_least else '<='} {check.bound:g}"
        verdict = "" if check.bound is None and check.passed else "[green]ok" if check.passed else "[red]MISSED"
        table.add_row(check.name, _figure(check.value), bound, verdict, f"[dim]{check.detail}")
    return table


def evaluation_table(evaluations: "Sequence[Evaluation]") -> Table:
    """Quality of several models, each beside the first."""
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
    """Accuracy, and perplexity, by position in a block."""
    names = [escape(evaluation.model.name) for evaluation in evaluations]
    accuracies = Table("positions", *names, box=SIMPLE, title="accuracy by position", title_justify="left")
    perplexities = Table("positions", *names, box=SIMPLE, title="perplexity by position", title_justify="left")
    for row in zip(*(evaluation.scores.ranges() for evaluation in evaluations), strict=True):
        name = f"{row[0][0].start:,} to {row[0][0].stop - 1:,}"
        accuracies.add_row(name, *(f"{quality.accuracy:.2%}" for _, quality in row))
        perplexities.add_row(name, *(f"{quality.perplexity:.2f}" for _, quality in row))
    return accuracies, perplexities


def summary_table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values."""
    table = Table(show_header=False, box=SIMPLE, title=escape(title), title_justify="left")
    for name, value in rows:
        table.add_row(name, value)
    return table


def megabytes(nbytes: float) -> str:
    """Bytes for readers: MB, or kB below one."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}" if abs(value) >= 0.1 else f"{value:.1e}"
