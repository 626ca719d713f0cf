"""The variants of LoRA that PEFT can save, each merged exactly or refused.

``python -m tests.checkpoint.adapter_variants`` prints the table of docs/reference/adapters.md.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import (
    BdLoraConfig,
    EvaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from torch import nn

from liger_export.checkpoint import Adapter, Checkpoint, MergedCheckpoint
from liger_export.errors import AdapterError
from tests.tiny import edit_json, load_model, relative_l2, write_liger

PROJECTIONS = ["q_proj", "k_proj", "v_proj"]
FEATURE_MERGE = "Merge the adapter with PEFT"
FEATURE_TRAIN = "Train a plain LoRA adapter"


@dataclass(frozen=True)
class Variant:
    """A kind of adapter.

    Attributes:
        name: its name in the table.
        options: options of ``peft.LoraConfig``; the rank is 2 and the projections are q, k and v by default.
        reason: why it is refused; empty if it is merged.
        refusal: part of the error message; empty if it is merged.
        edits: changes of the saved config, for variants that PEFT makes in other ways.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    refusal: str = ""
    edits: dict[str, Any] = field(default_factory=dict)


MERGED = [
    Variant("default"),
    Variant("every projection", {"target_modules": "all-linear"}),
    Variant("`use_rslora`", {"use_rslora": True}),
    Variant("`lora_dropout`", {"lora_dropout": 0.1}),
    Variant("`init_lora_weights=False`", {"init_lora_weights": False}),
    Variant('`init_lora_weights="gaussian"`', {"init_lora_weights": "gaussian"}),
    Variant('`init_lora_weights="orthogonal"`', {"init_lora_weights": "orthogonal"}),
    Variant('`init_lora_weights="mica"`', {"init_lora_weights": "mica"}),
    Variant(
        '`init_lora_weights="eva"`, ranks by layer',
        {
            "init_lora_weights": "eva",
            "eva_config": EvaConfig(),
            "rank_pattern": {"model.layers.0.self_attn.q_proj": 3, "model.layers.1.self_attn.v_proj": 1},
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 5},
        },
    ),
    Variant("`rank_pattern`", {"rank_pattern": {"q_proj": 4, r"layers\.1\..*v_proj": 3}}),
    Variant("`alpha_pattern`", {"alpha_pattern": {"k_proj": 32}}),
    Variant(
        "`rank_pattern`, `alpha_pattern` and `use_rslora`",
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 2, "v_proj": 16}, "use_rslora": True},
    ),
    Variant("`layers_to_transform`, `layers_pattern`", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    Variant("`exclude_modules`", {"target_modules": "all-linear", "exclude_modules": r".*layers\.0.*"}),
    Variant("`target_parameters`", {"target_modules": [], "target_parameters": ["q_proj.weight", "v_proj.weight"]}),
    Variant("`ensure_weight_tying` (q, k and v)", {"ensure_weight_tying": True}),
]

CHANGED_BASE = "the factors belong to a changed base"
REFUSED = [
    Variant('`init_lora_weights="pissa"`', {"init_lora_weights": "pissa"}, CHANGED_BASE, "path_initial_model"),
    Variant("`pissa_niter_4`", {"init_lora_weights": "pissa_niter_4"}, CHANGED_BASE, "path_initial_model"),
    Variant('`init_lora_weights="olora"`', {"init_lora_weights": "olora"}, CHANGED_BASE, "path_initial_model"),
    Variant(
        '`init_lora_weights="lora_ga"`',
        {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
        CHANGED_BASE,
        "path_initial_model",
    ),
    Variant("`use_dora`", {"use_dora": True}, "scales the merged rows", f"use_dora.*{FEATURE_MERGE}"),
    Variant("`bias`", {"bias": "lora_only"}, "trains biases", f"uses bias,.*{FEATURE_MERGE}"),
    Variant("`lora_bias`", {"lora_bias": True}, "adds a bias to B", f"lora_bias.*{FEATURE_TRAIN}"),
    Variant("`modules_to_save`", {"modules_to_save": ["lm_head"]}, "replaces weights", f"to_save.*{FEATURE_MERGE}"),
    Variant(
        "`trainable_token_indices`",
        {"trainable_token_indices": [1, 2]},
        "replaces rows of the embedding",
        f"trainable_token_indices.*{FEATURE_MERGE}",
    ),
    Variant("`kasa_config`", {"kasa_config": KasaConfig()}, CHANGED_BASE, f"kasa_config.*{FEATURE_MERGE}"),
    Variant(
        "`velora_config`",
        {"velora_config": VeloraConfig(num_groups=4, init_type="random")},
        "saves other tensors",
        f"velora_config.*{FEATURE_MERGE}",
    ),
    Variant(
        "`use_bdlora`",
        {"use_bdlora": BdLoraConfig(target_modules_bd_b=PROJECTIONS, nblocks=2)},
        "saves blocks of the factors",
        f"use_bdlora.*{FEATURE_MERGE}",
    ),
    Variant("`use_qalora`", {"use_qalora": True}, "pools the inputs of GPTQ layers", f"use_qalora.*{FEATURE_MERGE}"),
    Variant("embedding", {"target_modules": ["embed_tokens"]}, "has other factors", "not a LoRA factor"),
    Variant(
        "`target_parameters` with `alpha_pattern`",
        {"target_modules": [], "target_parameters": ["q_proj.weight"], "alpha_pattern": {"q_proj": 32}},
        "patterns match parameters, not modules",
        f"combines target_parameters.*{FEATURE_MERGE}",
    ),
    Variant(
        "`alora_invocation_tokens`",
        {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
        "adapts only the tokens after a phrase",
        f"alora_invocation_tokens.*{FEATURE_TRAIN}",
    ),
    Variant(
        "`monteclora_config`",
        {"monteclora_config": MontecloraConfig()},
        "samples its weights",
        f"monteclora_config.*{FEATURE_TRAIN}",
    ),
    Variant(
        "`arrow_config`",
        {},
        "routes between adapters",
        f"arrow_config.*{FEATURE_TRAIN}",
        {"arrow_config": {"top_k": 3}},
    ),
    Variant(
        "`layer_replication`",
        {},
        "repeats layers",
        f"layer_replication.*{FEATURE_TRAIN}",
        {"layer_replication": [[0, 2], [0, 2]]},
    ),
    Variant('`init_lora_weights="corda"`', {}, CHANGED_BASE, "path_initial_model", {"init_lora_weights": "corda"}),
    Variant(
        '`init_lora_weights="loftq"`',
        {},
        "the factors belong to a quantized base",
        "'loftq', which is not supported",
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    ),
    Variant(
        "any other field that is not at PEFT's default",
        {},
        "unknown effect",
        f"uses new_field, .*{FEATURE_TRAIN}",
        {"new_field": "on"},
    ),
]


def write_adapter(variant: Variant, checkpoint: Path, directory: Path) -> PeftModel:
    """Save an adapter with random factors as PEFT does. Returns the model with the adapter."""
    torch.manual_seed(2)
    options = {"r": 2, "lora_alpha": 6, "target_modules": PROJECTIONS, **variant.options}
    model = get_peft_model(load_model(checkpoint), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "trainable_tokens_delta" in name or parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory, save_embedding_layers=False)
    edit_json(directory / "adapter_config.json", **variant.edits)
    return model.eval()


def merged_by_peft(checkpoint: Path, directory: Path) -> nn.Module:
    model: nn.Module = PeftModel.from_pretrained(load_model(checkpoint), str(directory)).merge_and_unload()
    return model


def merging_error(checkpoint: Path, directory: Path, expected: nn.Module) -> float:
    """The largest relative L2 of a merged tensor, compared with the parameters of ``expected``."""
    merged = MergedCheckpoint(Checkpoint.open(checkpoint), (Adapter.open(directory),))
    merged.check()
    return max(
        relative_l2(torch.cat([merged.rows(name, *rows) for rows in merged.checkpoint.row_blocks(name, 500)]), value)
        for name, value in expected.named_parameters()
    )


def table() -> list[str]:
    """Rows of the table in docs/reference/adapters.md, measured."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_liger(Path(folder) / "liger")
        for number, variant in enumerate([*MERGED, *REFUSED]):
            directory = Path(folder) / str(number)
            write_adapter(variant, checkpoint, directory)
            try:
                Adapter.open(directory)
            except AdapterError:
                rows.append(f"| {variant.name} | refused: {variant.reason} |")
            else:
                error = merging_error(checkpoint, directory, merged_by_peft(checkpoint, directory))
                rows.append(f"| {variant.name} | merged, {error:.0e} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
