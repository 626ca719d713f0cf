import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from liger_export.checkpoint import Adapter, Checkpoint
from liger_export.data import token_blocks
from liger_export.errors import DataError, InputError, OutputError
from liger_export.evaluate import open_model
from liger_export.finetune import RECIPES, FinetuneSettings, finetune
from liger_export.metrics import measure_quality
from tests.recorder import Recorder
from tests.tiny import load_model

SETTINGS = FinetuneSettings(rank=4, sequence_length=32, batch_size=4, learning_rate=2e-2, max_steps=12, save_steps=4)


def test_training_improves_the_heldout_loss_and_saves_the_measured_adapter(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    told = Recorder()
    result = finetune(liger_checkpoint, code_text, output, SETTINGS, heldout=code_text, progress=told)
    assert [step for step, total, stage in told.reports if stage.startswith("training") and total == 12][-1] == 12
    assert [step for step, _, stage in told.reports if "loss" in stage][:2] == [1, 2]
    assert list(dict.fromkeys(stage.split(", loss ")[0] for stage in told.stages)) == [
        "reading the text",
        "loading the model",
        "measuring before training",
        "training",
        "measuring after training",
    ]
    assert len([stage for stage in told.stages if re.fullmatch(r"training, loss [\d.]+, [\d,]+ tokens/s", stage)]) == 12
    batches = -(-len(token_blocks_of(liger_checkpoint, code_text)) // 8)
    for phase in ("measuring before training", "measuring after training"):
        counted = [(done, total) for done, total, stage in told.reports if stage == phase and total == batches]
        assert counted == [(done, batches) for done in range(1, batches + 1)]
    assert result.after.loss < 0.8 * result.before.loss
    assert result.steps == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "text.txt"]

    Adapter.open(output).check(Checkpoint.open(liger_checkpoint))
    model = PeftModel.from_pretrained(load_model(liger_checkpoint), str(output))
    blocks = token_blocks_of(liger_checkpoint, code_text)
    assert measure_quality(model, blocks).loss == pytest.approx(result.after.loss, rel=1e-5)


def test_the_papers_recipe_is_the_default() -> None:
    assert RECIPES["paper"] == FinetuneSettings()
    assert RECIPES["best"].target_modules[:3] == FinetuneSettings().target_modules


def token_blocks_of(checkpoint: Path, text: Path) -> torch.Tensor:
    return token_blocks(open_model(checkpoint).encoder, text, SETTINGS.sequence_length)


def test_heldout_blocks_come_from_the_end_and_are_not_trained_on(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path
) -> None:
    result = finetune(liger_checkpoint, code_text, tmp_path / "adapter", SETTINGS)
    assert result.before.tokens == round(0.05 * len(token_blocks_of(liger_checkpoint, code_text))) * 31


@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_adapter(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(liger_checkpoint, code_text, tmp_path / "whole", SETTINGS)
    monkeypatch.setattr("liger_export.finetune.training.measure_quality", interrupt_on_second_call())
    with pytest.raises(KeyboardInterrupt):
        finetune(liger_checkpoint, code_text, tmp_path / "parts", SETTINGS)
    monkeypatch.undo()
    assert (tmp_path / "parts.work").is_dir()
    assert not (tmp_path / "parts").exists()
    with pytest.raises(OutputError, match="--resume"):
        finetune(liger_checkpoint, code_text, tmp_path / "parts", SETTINGS)

    other = tmp_path / "other.txt"
    other.write_text("class Point:\n    x = 0\n\n" * 300)
    with pytest.raises(InputError, match="began with another text"):
        finetune(liger_checkpoint, other, tmp_path / "parts", SETTINGS, resume=True)
    with pytest.raises(InputError, match="began with rank 4"):
        finetune(liger_checkpoint, code_text, tmp_path / "parts", dataclasses.replace(SETTINGS, rank=2), resume=True)
    resumed = finetune(liger_checkpoint, code_text, tmp_path / "parts", SETTINGS, resume=True)
    assert resumed.steps == whole.steps
    assert resumed.after.loss == pytest.approx(whole.after.loss, rel=1e-5)


def test_a_run_whose_record_is_damaged_is_not_resumed(liger_checkpoint: Path, code_text: Path, tmp_path: Path) -> None:
    (tmp_path / "out.work" / "point-4").mkdir(parents=True)
    (tmp_path / "out.work" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is missing or damaged.*start again"):
        finetune(liger_checkpoint, code_text, tmp_path / "out", SETTINGS, resume=True)


def test_an_input_is_never_overwritten(liger_checkpoint: Path, code_text: Path) -> None:
    for output in (liger_checkpoint, code_text.parent):
        with pytest.raises(OutputError, match="is, or contains, an input"):
            finetune(liger_checkpoint, code_text, output, SETTINGS, overwrite=True)
    assert code_text.exists()


def interrupt_on_second_call() -> object:
    calls: list[object] = []

    def measure(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure_quality(*arguments, **options)  # type: ignore[arg-type]

    return measure


def test_short_data_is_refused(liger_checkpoint: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"text": "short"}))
    with pytest.raises(DataError, match="6 tokens"):
        finetune(liger_checkpoint, short, tmp_path / "adapter", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["short.jsonl"]


def test_unknown_projection_is_refused(liger_checkpoint: Path, code_text: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, target_modules=("q_proj", "qkv"))
    with pytest.raises(InputError, match=r"no projection qkv.*q_proj"):
        finetune(liger_checkpoint, code_text, tmp_path / "adapter", settings)
