"""The profile of a package's steps, and its picture."""

from pathlib import Path

import pytest

from liger_export.bench.profiled import draw_profile, profile_steps, save_profile
from liger_export.bench.settings import BenchSettings
from liger_export.runtime.profile import OperatorTime, Profile

PROFILE = Profile(
    tokens=1,
    calls=8,
    seconds=2e-3,
    operators=(OperatorTime("IntegerLinear", 4, 1.5e-3, 1000), OperatorTime("Attention", 2, 0.1e-3, 0)),
)


def test_steps_after_the_shortest_context_are_profiled(package: Path) -> None:
    profile = profile_steps(package, BenchSettings(contexts=(5, 9), tokens=3, threads=1))
    assert (profile.tokens, profile.calls) == (1, 3)
    assert profile.seconds > profile.remainder


def test_the_picture_has_a_bar_for_each_part_in_ascending_order_with_its_share() -> None:
    panel = draw_profile(PROFILE).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["Attention", "between nodes", "IntegerLinear"]
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([0.1, 0.4, 1.5])
    assert [text.get_text() for text in panel.texts] == ["0.100 ms, 5.0%", "0.400 ms, 20.0%", "1.500 ms, 75.0%"]
    assert panel.get_xlabel() == "milliseconds in a step"


def test_the_picture_is_written_in_the_format_of_its_suffix(tmp_path: Path) -> None:
    save_profile(PROFILE, tmp_path / "profile.svg")
    assert "<svg" in (tmp_path / "profile.svg").read_text()
