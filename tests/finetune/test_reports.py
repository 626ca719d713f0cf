"""TensorBoard event files and the picture of the loss."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from liger_export.errors import EnvironmentMismatchError, OutputError
from liger_export.finetune import FinetuneSettings, finetune
from liger_export.finetune.plot import draw_losses
from liger_export.finetune.reports import EventLog
from liger_export.metrics import Quality

SETTINGS = FinetuneSettings(rank=4, sequence_length=32, batch_size=4, learning_rate=2e-2, max_steps=6, save_steps=4)


def read_scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    log = EventAccumulator(str(directory)).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_the_log_holds_every_step_and_the_heldout_metrics(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    result = finetune(liger_checkpoint, code_text, output, SETTINGS, log_dir=tmp_path / "log")
    scalars = read_scalars(tmp_path / "log")
    for tag in ("train/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second"):
        assert [step for step, _ in scalars[tag]] == [1, 2, 3, 4, 5, 6]
    assert scalars["heldout/loss"] == [
        (0, pytest.approx(result.before.loss)),
        (6, pytest.approx(result.after.loss)),
    ]
    assert [step for step, _ in scalars["heldout/accuracy"]] == [0, 6]
    assert "loss.png" in json.loads((output / ".liger-export").read_text())["files"]
    picture = imread(output / "loss.png")
    assert picture.shape[1] == 1120  # as wide as a README
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10


def test_a_resumed_log_replaces_the_steps_after_its_point(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.open(0)
    for step in range(1, 6):
        log.add({"train/loss": float(step)}, step)
    log.close()
    resumed = EventLog(tmp_path)
    resumed.open(3)
    for step in range(4, 7):
        resumed.add({"train/loss": 10.0 * step}, step)
    resumed.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    assert read_scalars(tmp_path)["train/loss"] == expected


def test_without_tensorboard_a_log_is_refused_with_its_extra(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(EnvironmentMismatchError, match=r"needs tensorboard.*\[tensorboard\]"):
        finetune(liger_checkpoint, code_text, tmp_path / "adapter", SETTINGS, log_dir=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_log_inside_an_output_or_in_place_of_a_file_is_refused(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path
) -> None:
    for place in ("adapter", "adapter/log", "adapter.work/log"):
        with pytest.raises(OutputError, match=r"The log directory .* is in"):
            finetune(liger_checkpoint, code_text, tmp_path / "adapter", SETTINGS, log_dir=tmp_path / place)
    with pytest.raises(OutputError, match="cannot be created"):
        finetune(liger_checkpoint, code_text, tmp_path / "adapter", SETTINGS, log_dir=code_text)


def test_without_matplotlib_the_adapter_has_no_picture(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liger_export.finetune.stage.can_draw", lambda: False)
    finetune(liger_checkpoint, code_text, tmp_path / "adapter", dataclasses.replace(SETTINGS, max_steps=1))
    assert not (tmp_path / "adapter" / "loss.png").exists()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_the_picture_shows_each_step_the_running_mean_and_the_heldout_losses() -> None:
    losses = [5 / (1 + step / 10) for step in range(60)]
    heldout = Quality(6.0, 0.1, 31), Quality(1.0, 0.6, 31)
    axes = draw_losses(losses, "loss (nats per token)", 32768, heldout).axes[0]
    each, mean, measured = axes.get_lines()
    assert list(np.asarray(each.get_ydata())) == losses
    means = np.asarray(mean.get_ydata())
    assert means[[0, 9, 59]] == pytest.approx([sum(losses[:2]) / 2, sum(losses[8:11]) / 3, sum(losses[58:]) / 2])
    assert (list(np.asarray(measured.get_xdata())), list(np.asarray(measured.get_ydata()))) == ([0, 60], [6.0, 1.0])
    assert axes.get_xlabel() == "optimizer step (32,768 tokens each)"
    assert axes.get_ylabel() == "loss (nats per token)"
    assert len(draw_losses(losses, "mean squared error of attention", 128, None).axes[0].get_lines()) == 2
