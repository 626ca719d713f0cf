"""The profile of a package: the time of a step by operator, and its picture."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from liger_export.bench.plot import COLORS, DOTS_PER_INCH, GREY
from liger_export.bench.settings import BenchSettings
from liger_export.bench.worker import PACKAGE
from liger_export.files import new_file
from liger_export.runtime import load
from liger_export.runtime.profile import Profile, end_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_profile", "profile_steps", "save_profile"]


def profile_steps(package: Path, settings: BenchSettings) -> Profile:
    """Profile the calls of one token that follow the shortest context, on the CPU.

    A session in this process reads the context and decodes ``settings.tokens`` tokens.
    """
    with TemporaryDirectory(prefix="liger-export-") as folder:
        session = load(package, device="cpu", threads=settings.threads, trace=Path(folder) / "trace")
        vocab_size = session.manifest.model_config.vocab_size
        tokens = np.random.default_rng(0).integers(0, vocab_size, min(settings.contexts) + settings.tokens).tolist()
        session.prefill(tokens[: -settings.tokens])
        for token in tokens[-settings.tokens :]:
            session.step(token)
        return next(profile for profile in end_profile(session) if profile.tokens == 1)


def draw_profile(profile: Profile) -> "Figure":
    """Draw a bar for each operator, with its milliseconds in a step and its share of the step."""
    from matplotlib.figure import Figure

    parts = [(each.operator, each.seconds) for each in profile.operators] + [("between nodes", profile.remainder)]
    parts.sort(key=lambda part: part[1])
    figure = Figure(figsize=(7, 0.8 + 0.32 * len(parts)), layout="constrained")
    panel = figure.subplots()
    bars = panel.barh([name for name, _ in parts], [1e3 * seconds for _, seconds in parts], color=COLORS[PACKAGE])
    shares = [f"{1e3 * seconds:.3f} ms, {seconds / profile.seconds:.1%}" for _, seconds in parts]
    panel.bar_label(bars, shares, padding=4, fontsize=9, color=GREY)
    panel.margins(x=0.3)  # room for the labels
    panel.set_xlabel("milliseconds in a step", fontsize=10, color=GREY)
    panel.set_title(f"A step of one token: {1e3 * profile.seconds:.3g} ms", loc="left", fontsize=11)
    panel.tick_params(labelsize=9, length=3, colors=GREY)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def save_profile(profile: Profile, file: Path) -> None:
    """Draw a profile and write it in the format given by the file's suffix. See ``require_plot``."""
    with new_file(file) as partial:
        draw_profile(profile).savefig(partial, dpi=DOTS_PER_INCH, format=file.suffix[1:].lower())
