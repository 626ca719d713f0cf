import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liger_export.bench.plot import draw, require_plot, save_plot
from liger_export.errors import EnvironmentMismatchError, InputError, OutputError
from liger_export.extras import install_command
from tests.bench.reports import CONTEXTS, example_report


def lines(panel: Any) -> dict[str, Any]:
    return {line.get_gid(): line for line in panel.get_lines() if line.get_gid()}


def test_panels_are_named_with_units_and_lines_with_their_last_values() -> None:
    figure = draw(example_report())
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "Time per token (ms)", "Carried state or cache (MB)", "Peak memory (MB)",
    ]  # fmt: skip
    assert [text.get_text() for text in figure.axes[1].texts] == [
        "liger-export package: 0.328 MB", "transformer, KV cache: 134 MB",
    ]  # fmt: skip
    for panel in figure.axes:
        assert panel.get_xlabel() == "tokens of context"
        assert [label.get_text() for label in panel.get_xticklabels()] == ["128", "4,096", "32,768"]


def test_lines_are_the_reports_medians() -> None:
    report = example_report()
    for panel in draw(report).axes:
        assert {name: tuple(line.get_xdata()) for name, line in lines(panel).items()} == {
            "package": CONTEXTS,
            "transformer": CONTEXTS,
        }
    carried = lines(draw(report).axes[1])
    assert list(carried["package"].get_ydata()) == [0.32768] * 3
    assert list(carried["transformer"].get_ydata()) == pytest.approx([4096 * context / 1e6 for context in CONTEXTS])
    decode = lines(draw(report).axes[0])
    assert list(decode["package"].get_ydata()) == pytest.approx([1.1] * 3)


@pytest.mark.parametrize("report", [example_report(), example_report(filled=True), example_report(contexts=(128,))])
def test_labels_lie_inside_their_panel_and_do_not_overlap(report: Any) -> None:
    figure = draw(report)
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [text.get_window_extent() for text in panel.texts]
        frame = panel.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 and box.y1 <= frame.y1 for box in boxes)
        assert not boxes[0].overlaps(boxes[1])


@pytest.mark.parametrize("report", [example_report(), example_report(filled=True), example_report(contexts=(128,))])
def test_no_label_hides_a_marker(report: Any) -> None:
    figure = draw(report)
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [text.get_window_extent() for text in panel.texts]
        for line in panel.get_lines():
            for x, y in panel.transData.transform(np.asarray(line.get_xydata())):
                assert not any(box.padded(4).contains(x, y) for box in boxes)


@pytest.mark.parametrize("against", [True, False])
def test_the_picture_names_models_and_machine(against: bool) -> None:
    named = ["liger_gla (8 layers of 256) from liger: fp32 in ONNX Runtime", "base: float32 in PyTorch"]
    machine = "A Processor, 2 threads; onnxruntime 1.32.0"
    assert draw(example_report(against=against)).get_suptitle().splitlines() == [*named[: 1 + against], machine]


def test_a_filled_cache_has_a_hollow_marker() -> None:
    marks = [line for line in draw(example_report(filled=True)).axes[0].get_lines() if not line.get_gid()]
    hollow = [int(line.get_xdata()[0]) for line in marks if line.get_markerfacecolor() == "white"]
    assert hollow == [32768]


@pytest.mark.parametrize("against", [True, False])
def test_the_file_is_an_image_and_not_blank(tmp_path: Path, against: bool) -> None:
    from matplotlib.image import imread

    save_plot(example_report(against=against), tmp_path / "bench.png")
    pixels = imread(tmp_path / "bench.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1200
    assert np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0).shape[0] > 20
    assert (pixels[..., :3].min(axis=-1) < 0.9).mean() > 0.005


def test_an_impossible_plot_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_plot(tmp_path / "bench.png")
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        require_plot(tmp_path / "bench.gif")
    with pytest.raises(OutputError, match="Create it"):
        require_plot(tmp_path / "absent" / "bench.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentMismatchError, match=re.escape(install_command("bench"))):
        require_plot(tmp_path / "bench.png")
