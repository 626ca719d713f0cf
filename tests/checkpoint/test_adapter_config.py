"""Every variant of LoRA that PEFT can save is merged exactly or refused, and docs/reference/adapters.md says which."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from liger_export.checkpoint import Adapter, open_liger
from liger_export.checkpoint.adapter_config import HARMLESS, READ
from liger_export.errors import AdapterError
from tests.checkpoint.adapter_variants import (
    FEATURE_MERGE,
    MERGED,
    PROJECTIONS,
    REFUSED,
    Variant,
    merged_by_peft,
    merging_error,
    write_adapter,
)
from tests.tiny import edit_json, load_model, relative_l2, write_liger

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "adapters.md"
TOKENS = torch.randint(1, 260, (1, 40), generator=torch.Generator().manual_seed(0))


def variants(listed: list[Variant]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("variant", listed, ids=[variant.name for variant in listed])


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model(TOKENS).logits
    return logits


@variants(MERGED)
def test_supported_variants_merge_to_peft_weights(variant: Variant, liger_checkpoint: Path, tmp_path: Path) -> None:
    model = write_adapter(variant, liger_checkpoint, tmp_path)
    expected = merged_by_peft(liger_checkpoint, tmp_path)
    assert merging_error(liger_checkpoint, tmp_path, expected) <= 1e-6
    assert relative_l2(logits_of(expected), logits_of(model)) <= 1e-5
    assert relative_l2(logits_of(load_model(liger_checkpoint)), logits_of(model)) > 1e-2


@variants(REFUSED)
def test_other_variants_are_refused_by_name(variant: Variant, liger_checkpoint: Path, tmp_path: Path) -> None:
    write_adapter(variant, liger_checkpoint, tmp_path)
    with pytest.raises(AdapterError, match=variant.refusal):
        Adapter.open(tmp_path)


@variants([variant for variant in REFUSED if FEATURE_MERGE in variant.refusal])
def test_merging_with_peft_works_as_the_message_says(variant: Variant, liger_checkpoint: Path, tmp_path: Path) -> None:
    model = write_adapter(variant, liger_checkpoint, tmp_path / "adapter")
    expected = logits_of(model)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    open_liger(tmp_path / "merged")
    assert relative_l2(logits_of(load_model(tmp_path / "merged")), expected) <= 1e-5
    assert relative_l2(logits_of(load_model(liger_checkpoint)), expected) > 1e-2 or variant.name == "`bias`"


@pytest.mark.parametrize(
    ("initial", "options"),
    [
        ("pissa", {}),
        ("pissa_niter_4", {}),
        ("olora", {}),
        ("pissa", {"use_rslora": True}),
        ("olora", {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}}),
    ],
)
def test_adapters_saved_as_a_difference_merge_exactly(
    initial: str, options: dict[str, Any], liger_checkpoint: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=PROJECTIONS, init_lora_weights=initial, **options)
    model = get_peft_model(load_model(liger_checkpoint), lora)
    model.save_pretrained(tmp_path / "initial", save_embedding_layers=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    expected = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(
        tmp_path / "adapter",
        path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
        save_embedding_layers=False,
    )
    assert merging_error(liger_checkpoint, tmp_path / "adapter", expected) <= 1e-6


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_unknown_fields_that_are_off_are_accepted(value: object, liger_checkpoint: Path, tmp_path: Path) -> None:
    write_adapter(MERGED[0], liger_checkpoint, tmp_path)
    edit_json(tmp_path / "adapter_config.json", new_field=value)
    assert Adapter.open(tmp_path).updates


def test_a_new_field_with_pefts_default_is_accepted_and_another_value_is_not(
    liger_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(MERGED[0], liger_checkpoint, tmp_path)
    known = LoraConfig().to_dict()
    monkeypatch.setattr(LoraConfig, "to_dict", lambda _: {**known, "new_mode": "auto", "new_size": 4})
    edit_json(tmp_path / "adapter_config.json", new_mode="auto", new_size=4)
    assert Adapter.open(tmp_path).updates
    edit_json(tmp_path / "adapter_config.json", new_size=0)
    with pytest.raises(AdapterError, match="uses new_size, which is not supported"):
        Adapter.open(tmp_path)


def test_no_field_that_peft_declares_as_a_variant_is_taken_as_harmless() -> None:
    declared = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert declared
    assert not declared & (HARMLESS | READ)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha_pattern": {"q_proj": 3, ".*_proj": 4}}, "several entries of alpha_pattern that match .*q_proj"),
        ({"rank_pattern": {"q_proj": 3}}, r"with A \[2, 24\] .* r = 3"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern = {'q_proj': 0}"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern = {'q_proj': inf}"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern = \['q_proj'\]"),
        ({"alpha_pattern": {"(": 3}}, "invalid regular expression in alpha_pattern"),
        ({"init_lora_weights": "PISSA"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "newest"}, "'newest', which is not supported"),
        ({"lora_alpha": True}, "lora_alpha = True"),
    ],
)
def test_values_without_one_meaning_are_refused(
    changes: dict[str, Any], words: str, liger_checkpoint: Path, tmp_path: Path
) -> None:
    write_adapter(MERGED[0], liger_checkpoint, tmp_path)
    edit_json(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(AdapterError, match=words):
        Adapter.open(tmp_path)


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("weight", ["lm_head", "embed_tokens"])
def test_adapters_of_a_tied_embedding_or_head_are_refused(weight: str, is_stored: bool, tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", tie_word_embeddings=True)
    options = {"target_modules": [], "target_parameters": [f"{weight}.weight"]}
    write_adapter(Variant(weight, options), checkpoint, tmp_path / "adapter")
    if is_stored:
        tensors = load_file(checkpoint / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=rf"adapts .*{weight}\.weight, but .* one tensor"):
        Adapter.open(tmp_path / "adapter").check(open_liger(checkpoint).weights)


@pytest.mark.parametrize("weight", ["lm_head", "embed_tokens"])
def test_untied_embeddings_and_heads_can_be_adapted(weight: str, liger_checkpoint: Path, tmp_path: Path) -> None:
    options = {"target_modules": [], "target_parameters": [f"{weight}.weight"]}
    write_adapter(Variant(weight, options), liger_checkpoint, tmp_path)
    assert merging_error(liger_checkpoint, tmp_path, merged_by_peft(liger_checkpoint, tmp_path)) <= 1e-6


def test_adapters_of_weights_that_the_model_does_not_use_are_refused(checkpoint_copy: Path, tmp_path: Path) -> None:
    unused = "model.layers.0.self_attn.q_norm.weight"
    file = checkpoint_copy / "model.safetensors"
    save_file({**load_file(file), unused: torch.ones(8, 24)}, file, metadata={"format": "pt"})
    write_adapter(MERGED[0], checkpoint_copy, tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = f"base_model.model.{unused.removesuffix('.weight')}.lora_"
    factors |= {f"{name}A.weight": torch.ones(2, 24), f"{name}B.weight": torch.ones(8, 2)}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=rf"adapts {unused}, which the model does not use"):
        Adapter.open(tmp_path / "adapter").check(open_liger(checkpoint_copy).weights)


def test_docs_list_every_variant() -> None:
    documented = dict(re.findall(r"^\| (.+?) \| ((?:merged|refused).+?) \|$", DOCS.read_text(), re.MULTILINE))
    assert list(documented) == [variant.name for variant in [*MERGED, *REFUSED]]
    for variant in MERGED:
        assert float(documented[variant.name].removeprefix("merged, ")) <= 1e-6
    for variant in REFUSED:
        assert documented[variant.name] == f"refused: {variant.reason}"
