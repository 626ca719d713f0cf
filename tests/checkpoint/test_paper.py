"""Checkpoints of the paper implementation load without conversion and give its logits."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from liger_export.checkpoint import open_liger
from liger_export.convert import convert
from liger_export.errors import CheckpointError, UnsupportedModelError
from liger_export.linearize import linearize
from liger_export.modeling import register
from liger_export.runtime import load
from tests.cells import slow_except
from tests.paper import PAPER_TYPES, paper_logits, write_paper_adapter, write_paper_checkpoint
from tests.tiny import edit_json, relative_l2

every_type = pytest.mark.parametrize("model_type", slow_except(["liger_gla", "lolcats"], PAPER_TYPES))
LENGTH = 80  # past the window of 65 keys
TOKENS = torch.randint(1, 260, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def logits_of(checkpoint: Path, adapter: Path | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    register()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(TOKENS).logits
    return logits


@every_type
def test_model_and_adapter_equal_the_paper_implementation(model_type: str, tmp_path: Path) -> None:
    checkpoint = write_paper_checkpoint(tmp_path / "paper", model_type)
    assert relative_l2(logits_of(checkpoint), paper_logits(checkpoint, TOKENS)) < 1e-5
    adapter = write_paper_adapter(tmp_path / "adapter", checkpoint)
    assert relative_l2(logits_of(checkpoint, adapter), paper_logits(checkpoint, TOKENS, adapter)) < 1e-5


@pytest.mark.slow
@every_type
def test_package_equals_the_paper_implementation(model_type: str, tmp_path: Path) -> None:
    checkpoint = write_paper_checkpoint(tmp_path / "paper", model_type, tie_word_embeddings=model_type == "liger_gsa")
    adapter = write_paper_adapter(tmp_path / "adapter", checkpoint)
    convert(checkpoint, tmp_path / "package", adapters=(adapter,))
    session = load(tmp_path / "package")
    measured = torch.from_numpy(session.all_logits(TOKENS[0].tolist()))
    assert relative_l2(measured, paper_logits(checkpoint, TOKENS[:1], adapter)[0]) < 1e-5


@pytest.mark.parametrize(("model_type", "keys"), [("liger_gla", 65), ("liger_mistral_gla", 65), ("lolcats", 64)])
def test_the_window_is_the_effective_window_of_the_paper_implementation(
    model_type: str, keys: int, tmp_path: Path
) -> None:
    checkpoint = write_paper_checkpoint(tmp_path / "paper", model_type)
    assert open_liger(checkpoint).config.window_size == keys
    other = paper_logits(checkpoint, TOKENS, keys=keys - 1)
    assert relative_l2(logits_of(checkpoint), other) > 1e-3


def test_the_window_in_a_forks_config_includes_the_current_key(tmp_path: Path) -> None:
    checkpoint = write_paper_checkpoint(tmp_path / "paper", "liger_gla", window_size=10)
    assert relative_l2(logits_of(checkpoint), paper_logits(checkpoint, TOKENS, keys=10)) < 1e-5


@pytest.mark.parametrize("slots", [4, 8])
def test_pool_size_is_the_number_of_slots(slots: int, tmp_path: Path) -> None:
    checkpoint = write_paper_checkpoint(tmp_path / "paper", "liger_gsa", pool_size=slots)
    assert open_liger(checkpoint).config.num_slots == slots
    assert relative_l2(logits_of(checkpoint), paper_logits(checkpoint, TOKENS)) < 1e-5


def test_qwen3_norms_and_biases_are_read_from_the_tensors(tmp_path: Path) -> None:
    saved = open_liger(write_paper_checkpoint(tmp_path / "saved", "liger_qwen3_gla")).config
    assert (saved.qk_norm, saved.qkv_bias, saved.output_bias) == (False, True, False)
    base = write_paper_checkpoint(tmp_path / "base", "liger_qwen3_gla", edited_base=True)
    config = open_liger(base).config
    assert (config.qk_norm, config.qkv_bias) == (True, False)


def test_norms_that_the_paper_implementation_ignores_can_be_switched_off(tmp_path: Path) -> None:
    base = write_paper_checkpoint(tmp_path / "base", "liger_qwen3_gla", edited_base=True)
    assert relative_l2(logits_of(base), paper_logits(base, TOKENS)) > 1e-3
    edit_json(base / "config.json", qk_norm=False)
    assert relative_l2(logits_of(base), paper_logits(base, TOKENS)) < 1e-5


def test_saving_a_paper_model_preserves_its_logits(tmp_path: Path) -> None:
    register()
    checkpoint = write_paper_checkpoint(tmp_path / "paper", "lolcats")
    AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).save_pretrained(tmp_path / "copy")
    assert open_liger(tmp_path / "copy").config == open_liger(checkpoint).config
    assert torch.equal(logits_of(tmp_path / "copy"), logits_of(checkpoint))


def test_missing_slots_and_feature_maps_are_rejected(tmp_path: Path) -> None:
    gsa = write_paper_checkpoint(tmp_path / "gsa", "liger_gsa")
    edit_json(gsa / "config.json", pool_size=None)
    with pytest.raises(CheckpointError, match="pool_size"):
        open_liger(gsa)
    edit_json(gsa / "config.json", pool_size=3)
    with pytest.raises(UnsupportedModelError, match="does not divide head_dim"):
        open_liger(gsa)

    lolcats = write_paper_checkpoint(tmp_path / "lolcats", "lolcats")
    tensors = load_file(lolcats / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "feature_map_q.mlp.linears.2" not in name}
    save_file(kept, lolcats / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"heads of .*query_map are incomplete"):
        open_liger(lolcats)
    kept = {name: tensor for name, tensor in tensors.items() if "feature_map" not in name}
    save_file(kept, lolcats / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"feature map.*first stage"):
        open_liger(lolcats)


def test_a_paper_checkpoint_is_not_a_base(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="already a Liger model"):
        linearize(str(write_paper_checkpoint(tmp_path / "paper", "lolcats")), tmp_path / "liger")
