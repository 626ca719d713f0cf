import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from liger_export.checkpoint import Adapter, Checkpoint, MergedCheckpoint
from liger_export.errors import AdapterError
from tests.tiny import edit_json, load_model, write_liger


@pytest.fixture
def adapter_copy(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def test_merging_equals_peft(liger_checkpoint: Path, adapter: Path) -> None:
    expected = PeftModel.from_pretrained(load_model(liger_checkpoint), str(adapter)).merge_and_unload()
    merged = MergedCheckpoint(Checkpoint.open(liger_checkpoint), (Adapter.open(adapter),))
    merged.check()
    changed = 0
    for name, parameter in expected.named_parameters():
        pieces = [merged.rows(name, start, start + 7) for start in range(0, len(parameter), 7)]
        torch.testing.assert_close(torch.cat(pieces), parameter.data, rtol=1e-6, atol=1e-7)
        changed += not torch.equal(torch.cat(pieces), merged.checkpoint.read(name))
    assert changed == 6  # q, k and v of two layers


def test_updates_of_several_adapters_are_added(liger_checkpoint: Path, adapter: Path) -> None:
    checkpoint, opened = Checkpoint.open(liger_checkpoint), Adapter.open(adapter)
    name = "model.layers.0.self_attn.k_proj.weight"
    base = checkpoint.read(name)
    once = MergedCheckpoint(checkpoint, (opened,)).rows(name, 0, len(base))
    twice = MergedCheckpoint(checkpoint, (opened, opened)).rows(name, 0, len(base))
    torch.testing.assert_close(twice - base, 2 * (once - base))


def test_rank_stabilized_scale(adapter_copy: Path) -> None:
    plain = Adapter.open(adapter_copy).updates
    edit_json(adapter_copy / "adapter_config.json", use_rslora=True)
    for name, update in Adapter.open(adapter_copy).updates.items():
        assert update.scale == pytest.approx(plain[name].scale * 2**0.5)


def test_an_adapter_for_other_weights_is_rejected(adapter: Path, tmp_path: Path) -> None:
    other = write_liger(tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match="was not trained on the weights in"):
        Adapter.open(adapter).check(Checkpoint.open(other))


def test_an_adapter_of_another_shape_is_rejected(adapter: Path, tmp_path: Path) -> None:
    fewer_layers = write_liger(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(AdapterError, match="does not have"):
        Adapter.open(adapter).check(Checkpoint.open(fewer_layers))
    wider = write_liger(tmp_path / "wide", num_attention_heads=8, num_key_value_heads=4)
    with pytest.raises(AdapterError, match="do not fit"):
        Adapter.open(adapter).check(Checkpoint.open(wider))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "Only LoRA"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 0}, "r = 0"),
        ({"r": 4}, "does not match r = 4"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
    ],
)
def test_adapters_that_cannot_be_merged_exactly_are_rejected(
    adapter_copy: Path, changes: dict[str, object], words: str
) -> None:
    edit_json(adapter_copy / "adapter_config.json", **changes)
    with pytest.raises(AdapterError, match=words):
        Adapter.open(adapter_copy)


def test_an_incomplete_adapter_is_rejected(adapter_copy: Path) -> None:
    file = adapter_copy / "adapter_model.safetensors"
    factors = load_file(file)
    factors.pop(next(name for name in factors if "lora_A" in name))
    save_file(factors, file)
    with pytest.raises(AdapterError, match="lacks an A or B"):
        Adapter.open(adapter_copy)
    file.unlink()
    with pytest.raises(AdapterError, match="missing"):
        Adapter.open(adapter_copy)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("adapter_config.json", {"lora_alpha": 10**400}),
        ("adapter_config.json", {"alpha_pattern": {"q_proj": 10**400}}),
        ("adapter_config.json", {"init_lora_weights": [], "r": True}),
        ("adapter_config.json", {"rank_pattern": {r"([\w.]+)+!": 2}}),  # exponential time
        ("adapter_config.json", {"alpha_pattern": {r".*.*.*.*!": 2}}),
        ("liger_adapter.json", {"base_sha256": 5}),
    ],
)
def test_an_adapter_with_another_value_is_an_error_of_ours(
    adapter: Path, tmp_path: Path, file: str, changes: dict[str, object]
) -> None:
    damaged = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    edit_json(damaged / file, **changes)
    with pytest.raises(AdapterError, match="adapter"):
        Adapter.open(damaged)
