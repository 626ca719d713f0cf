"""Tiny random models for tests: base checkpoints of a few thousand parameters, and Liger checkpoints of them."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from liger_export.config import LigerConfig, read_config_json
from liger_export.files import sha256_file
from liger_export.linearize import LinearizeSettings, linearize
from liger_export.modeling import MODEL_CLASSES, LigerForCausalLM

VOCABULARY = 260
END_OF_TEXT = "<|end|>"
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
BACKBONES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@dataclass(frozen=True)
class Shape:
    """The sizes that property tests vary."""

    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 8
    window: int = 8

    @property
    def base_values(self) -> dict[str, Any]:
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": 6 * self.heads,  # transformers requires a multiple of the number of heads
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


def byte_tokenizer() -> Tokenizer:
    """Tokenizer with one token per byte, and an end-of-text token at the start of every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({END_OF_TEXT: 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer


def write_base(
    directory: Path, shape: Shape | None = None, *, backbone: str = "llama", seed: int = 0, **overrides: Any
) -> Path:
    """Write a random checkpoint of a backbone with a tokenizer. Biases and norms are random too."""
    torch.manual_seed(seed)
    values = {**(shape or Shape()).base_values, **overrides}
    if backbone == "qwen2":  # its config has no head_dim
        values["hidden_size"] = values["num_attention_heads"] * values.pop("head_dim")
    config_class, model_class = BACKBONES[backbone]
    model = model_class(config_class(**values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END_OF_TEXT).save_pretrained(directory)
    return directory


def write_liger(
    directory: Path,
    shape: Shape | None = None,
    *,
    backbone: str = "llama",
    settings: LinearizeSettings | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a random Liger checkpoint with ``linearize``; the window size is that of ``shape``."""
    shape = shape or Shape()
    base = directory.with_name(directory.name + "-base")
    write_base(base, shape, backbone=backbone, seed=seed, **overrides)
    linearize(str(base), directory, dataclasses.replace(settings or LinearizeSettings(), window_size=shape.window))
    return directory


def write_overflowing(directory: Path, name: str) -> Path:
    """Write a Liger checkpoint with one matrix whose products are too large for fp16. Its weights are not."""
    path = write_liger(directory, **WIDE) / "model.safetensors"
    tensors = load_file(path)
    weight = tensors[f"{name}.weight"]
    weight *= 6e4 / weight.abs().max()
    save_file(tensors, path, {"format": "pt"})
    return directory


def config_of(checkpoint: Path) -> LigerConfig:
    return LigerConfig.from_dict(read_config_json(checkpoint))


def load_model(checkpoint: Path, dtype: torch.dtype = torch.float32) -> LigerForCausalLM:
    model_class = MODEL_CLASSES[read_config_json(checkpoint)["model_type"]]
    model: LigerForCausalLM = model_class.from_pretrained(checkpoint, dtype=dtype)
    return model.eval()


def reseal(package: Path) -> None:
    """Update the manifest after a test has changed files on purpose."""
    files = json.loads((package / "manifest.json").read_text())["files"]
    for name in files:
        path = package / name
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit_json(package / "manifest.json", files=files)


def edit_json(path: Path, **changes: Any) -> None:
    """Change values of a JSON object. A manifest loses its hash, as if it were of an older version."""
    values = json.loads(path.read_text())
    if path.name == "manifest.json":
        values.pop("sha256", None)
    path.write_text(json.dumps({**values, **changes}))


def record_file(package: Path, name: str) -> None:
    """Record the present size and SHA-256 of a file in the package's manifest."""
    manifest, file = package / "manifest.json", package / name
    entry = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    edit_json(manifest, files={**json.loads(manifest.read_text())["files"], name: entry})


def relative_l2(measured: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative L2 error |measured - reference| / |reference|; the absolute error if the reference is zero."""
    measured, reference = measured.detach().double(), reference.detach().double()
    error, norm = float((measured - reference).norm()), float(reference.norm())
    return error / norm if norm else error
