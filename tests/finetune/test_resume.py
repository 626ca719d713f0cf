"""A run that is stopped and resumed, against one that is not: the same bits, on one device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from liger_export.errors import InputError
from liger_export.finetune import FinetuneSettings, finetune
from tests.finetune.test_points import content

SETTINGS = FinetuneSettings(rank=4, sequence_length=32, batch_size=2, learning_rate=2e-2, max_steps=10, save_steps=5)


@dataclass
class Watched:
    """The tokens that a run read, and the state that its last step left."""

    batches: list[Tensor] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    schedule: dict[str, Any] = field(default_factory=dict)


@contextmanager
def watched(stop_after: int | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Record a run, and interrupt it after the point of a step has been saved."""
    seen, step, save = Watched(), Trainer.training_step, Trainer._maybe_log_save_evaluate

    def training_step(trainer: Any, model: Any, inputs: dict[str, Tensor], *arguments: Any) -> Tensor:
        seen.batches.append(inputs["input_ids"].clone())
        loss: Tensor = step(trainer, model, inputs, *arguments)
        return loss

    def save_and_stop(trainer: Any, *arguments: Any, **options: Any) -> None:
        save(trainer, *arguments, **options)
        states = trainer.optimizer.state_dict()["state"].values()
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq", "step")]
        seen.tensors = [tensor.clone() for tensor in (*moments, torch.get_rng_state())]
        seen.schedule = trainer.lr_scheduler.state_dict()
        if trainer.state.global_step == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", training_step)
        patched.setattr(Trainer, "_maybe_log_save_evaluate", save_and_stop)
        yield seen


@pytest.mark.slow
def test_ten_steps_equal_five_and_five_resumed_bit_for_bit(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapter, loss picture, optimizer, schedule, order of the data and random state; the data is read twice."""
    text = tmp_path / "short.txt"
    text.write_text(code_text.read_text()[:450])
    with watched(None, monkeypatch) as whole:
        finetune(liger_checkpoint, text, tmp_path / "whole", SETTINGS)
    with watched(5, monkeypatch) as first, pytest.raises(KeyboardInterrupt):
        finetune(liger_checkpoint, text, tmp_path / "parts", SETTINGS)
    torch.manual_seed(99)
    with watched(None, monkeypatch) as second:
        finetune(liger_checkpoint, text, tmp_path / "parts", SETTINGS, resume=True)

    assert (len(first.batches), len(second.batches)) == (5, 5)
    assert all(map(torch.equal, [*first.batches, *second.batches], whole.batches))
    assert len({block.tobytes() for batch in whole.batches for block in batch.numpy()}) < 2 * 10  # a second epoch
    assert len(whole.tensors) > 3
    assert all(map(torch.equal, second.tensors, whole.tensors))
    assert second.schedule == whole.schedule
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert "loss.png" in content(tmp_path / "parts")


def test_a_run_is_not_resumed_with_another_batch_size(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FinetuneSettings(rank=4, sequence_length=32, batch_size=4, learning_rate=2e-2, max_steps=10)
    with watched(5, monkeypatch), pytest.raises(KeyboardInterrupt):
        finetune(liger_checkpoint, code_text, tmp_path / "parts", SETTINGS)
    with pytest.raises(InputError, match="began with batch_size 2"):
        finetune(liger_checkpoint, code_text, tmp_path / "parts", other, resume=True)
