"""Tiny random models for tests: a Llama of a few thousand parameters and everything made from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from liger_export.config import LigerConfig, read_config_json
from liger_export.linearize import linearize
from liger_export.modeling import LigerGLAForCausalLM

VOCABULARY = 260
END_OF_TEXT = "<|end|>"


@dataclass(frozen=True)
class Shape:
    """What the property tests vary: head counts, head size and window, odd sizes included."""

    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 8
    window: int = 8

    @property
    def base_values(self) -> dict[str, Any]:
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
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
    """One token a byte, and an end-of-text token that opens every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({END_OF_TEXT: 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer


def write_base(directory: Path, shape: Shape | None = None, *, seed: int = 0, **overrides: Any) -> Path:
    """A random Llama checkpoint with a tokenizer."""
    torch.manual_seed(seed)
    values = {**(shape or Shape()).base_values, **overrides}
    # Llama's own config refuses a hidden size that heads do not divide; Liger does not need it to.
    config = LlamaConfig(**{**values, "hidden_size": values["num_attention_heads"] * 6})
    LlamaForCausalLM(config).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END_OF_TEXT).save_pretrained(directory)
    return directory


def write_liger(directory: Path, shape: Shape | None = None, *, seed: int = 0, **overrides: Any) -> Path:
    """A random Liger checkpoint, made from a random Llama by ``linearize``."""
    shape = shape or Shape()
    base = write_base(directory.with_name(directory.name + "-base"), shape, seed=seed, **overrides)
    linearize(str(base), directory, window_size=shape.window)
    return directory


def config_of(checkpoint: Path) -> LigerConfig:
    return LigerConfig.from_dict(read_config_json(checkpoint))


def load_model(checkpoint: Path, dtype: torch.dtype = torch.float32) -> LigerGLAForCausalLM:
    model: LigerGLAForCausalLM = LigerGLAForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    return model.eval()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def relative_l2(measured: torch.Tensor, reference: torch.Tensor) -> float:
    return float((measured.double() - reference.double()).norm() / reference.double().norm())
