"""Training on packed documents."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from liger_export.config import MIXERS
from liger_export.errors import InputError
from liger_export.finetune import FinetuneSettings, finetune
from liger_export.finetune.blocks import Blocks
from liger_export.linearize import LinearizeSettings
from liger_export.modeling.loss import IGNORED
from tests.tiny import Shape, load_model, relative_l2, write_liger

SETTINGS = FinetuneSettings(
    rank=4, sequence_length=32, packing=True, batch_size=4, learning_rate=2e-2, max_steps=12, save_steps=4
)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    texts = [f"def add_{index}(a, b):\n    return a + b\n" * (1 + index % 3) for index in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_no_document_predicts_the_start_of_the_next() -> None:
    blocks = Blocks(torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 0, 1, 0]]))
    item = blocks[0]
    assert item["labels"].tolist() == [5, 6, IGNORED, 8, IGNORED]
    assert item["position_ids"].tolist() == [0, 1, 0, 1, 0]
    assert sorted(Blocks(blocks.tokens)[0]) == ["input_ids", "labels"]


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_the_models_loss_and_gradients_are_the_sums_over_its_documents(mixer: str, tmp_path: Path) -> None:
    settings = LinearizeSettings(mixer=mixer, keep_softmax_every=2)
    model = load_model(write_liger(tmp_path / "liger", Shape(window=5), settings=settings), torch.float64).train()
    tokens = torch.randint(1, 260, (1, 40), generator=torch.Generator().manual_seed(0))
    lengths = [13, 26, 1]  # the last one predicts nothing
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    batch = {name: row[None] for name, row in Blocks(tokens, positions)[0].items()}
    model(**batch, num_items_in_batch=1).loss.backward()
    packed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for part in tokens.split(lengths, 1)[:2]:
        model(input_ids=part, labels=part, num_items_in_batch=1).loss.backward()
    for found, parameter in zip(packed, model.parameters(), strict=True):
        assert relative_l2(found, parameter.grad) < 1e-12


def test_a_cache_after_packed_documents_continues_the_last(tmp_path: Path) -> None:
    model = load_model(write_liger(tmp_path / "liger", Shape(window=5)), torch.float64)
    tokens = torch.randint(1, 260, (1, 20), generator=torch.Generator().manual_seed(0))
    positions = torch.cat((torch.arange(9), torch.arange(11)))[None]
    cache = model(tokens[:, :15], position_ids=positions[:, :15]).past_key_values
    assert cache.seen.tolist() == [6]
    continued = model(tokens[:, 15:], past_key_values=cache).logits
    assert relative_l2(continued, model(tokens[:, 9:]).logits[:, 6:]) < 1e-12


def test_packed_training_improves_the_heldout_loss(liger_checkpoint: Path, documents: Path, tmp_path: Path) -> None:
    result = finetune(liger_checkpoint, documents, tmp_path / "adapter", SETTINGS)
    assert result.steps == 12
    assert result.after.loss < result.before.loss - 1


@pytest.mark.slow
def test_a_packed_run_is_not_resumed_without_packing(
    liger_checkpoint: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("liger_export.finetune.stage.save_losses", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(liger_checkpoint, documents, tmp_path / "adapter", SETTINGS)
    other = dataclasses.replace(SETTINGS, packing=False)
    with pytest.raises(InputError, match=r"began with packing True"):
        finetune(liger_checkpoint, documents, tmp_path / "adapter", other, resume=True)
