"""The picture of a training run: its loss by optimizer step. matplotlib is imported only when it is drawn."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from liger_export.metrics import Quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LOSS_PLOT", "can_draw", "draw_losses", "save_losses"]

LOSS_PLOT = "loss.png"
DOTS_PER_INCH = 140
TRAINED, HELD_OUT, GREY = "#1f6fb2", "#c0392b", "#555555"
SMOOTHED_PARTS = 20  # the mean line is smoothed over a 20th of the steps


def can_draw() -> bool:
    """Tell whether matplotlib, of the extra ``bench``, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save_losses(
    losses: Sequence[float], unit: str, tokens_per_step: int, heldout: tuple[Quality, Quality] | None, directory: Path
) -> None:
    """Write ``loss.png`` into a directory. Takes the arguments of ``draw_losses``."""
    figure = draw_losses(losses, unit, tokens_per_step, heldout)
    figure.savefig(directory / LOSS_PLOT, dpi=DOTS_PER_INCH)


def draw_losses(
    losses: Sequence[float], unit: str, tokens_per_step: int, heldout: tuple[Quality, Quality] | None
) -> "Figure":
    """Draw the loss of each step and its running mean, and the held-out loss before and after.

    Args:
        losses: training loss of each optimizer step, from the first.
        unit: quantity and unit of the losses.
        tokens_per_step: tokens of one optimizer step.
        heldout: metrics before and after training; None if their loss is another quantity.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color=TRAINED, alpha=0.35, linewidth=1, label="training, each step")
    axes.plot(steps, _running_mean(losses), color=TRAINED, linewidth=2, label="training, running mean")
    if heldout is not None:
        _draw_heldout(axes, heldout, len(losses))
    axes.set_xlabel(f"optimizer step ({tokens_per_step:,} tokens each)", fontsize=10, color=GREY)
    axes.set_ylabel(unit, fontsize=10, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.25)
    axes.tick_params(labelsize=9, length=3, colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _draw_heldout(axes: "Axes", heldout: tuple[Quality, Quality], last_step: int) -> None:
    values = [quality.loss for quality in heldout]
    label = f"held out, {values[0]:.2f} before and {values[1]:.2f} after"
    axes.plot((0, last_step), values, "o", color=HELD_OUT, markersize=6, label=label, clip_on=False, zorder=3)


def _running_mean(losses: Sequence[float]) -> list[float]:
    """Mean of each loss with its neighbours, over a ``SMOOTHED_PARTS``-th of all."""
    reach = len(losses) // (2 * SMOOTHED_PARTS)
    sums = np.concatenate(([0.0], np.cumsum(losses)))
    places = np.arange(len(losses))
    starts, stops = np.maximum(0, places - reach), np.minimum(len(losses), places + reach + 1)
    means: list[float] = ((sums[stops] - sums[starts]) / (stops - starts)).tolist()
    return means
