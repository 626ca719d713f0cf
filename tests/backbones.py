"""Small checkpoints of every mixer on every backbone, of one size, so that all tests of a backbone share its trace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from liger_export.config import MIXERS
from liger_export.linearize import LinearizeSettings
from tests.tiny import WIDE, Shape, write_liger

__all__ = ["SHAPES", "SOFTMAX_WINDOW", "VARIANTS", "settings_of", "write_hybrid", "write_variant"]

# At these head sizes it keeps some wavelengths, blends some and scales some.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 64}),
    "mistral-tied": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-biased": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}

# Sums that never decay lose digits in float32, more so with few features. LoLCATs is tested at the head size and
# window of real models.
SHAPES = dict.fromkeys(MIXERS, Shape(window=8)) | {"lolcats": Shape(2, 1, head_dim=64, window=64)}
SIZES = dict.fromkeys(MIXERS, WIDE) | {"lolcats": {"hidden_size": 64, "intermediate_size": 96}}
SOFTMAX_WINDOW = 40
SCALE = dict.fromkeys(MIXERS, 0.3) | {"lolcats": 0.05}


def settings_of(mixer: str) -> LinearizeSettings:
    return LinearizeSettings(mixer=mixer, num_slots=4 if mixer == "gsa" else None)


def write_variant(directory: Path, mixer: str = "gla", variant: str = "llama", **values: Any) -> Path:
    """Write a random Liger checkpoint of two layers; another number, in ``values``, needs a trace of its own."""
    backbone, overrides = VARIANTS[variant]
    values = {"initializer_range": SCALE[mixer], **SIZES[mixer], **overrides, **values}
    return write_liger(directory, SHAPES[mixer], backbone=backbone, settings=settings_of(mixer), **values)


def write_hybrid(directory: Path, mixer: str) -> Path:
    """Write a random Liger checkpoint of two layers, of which the second keeps softmax over ``SOFTMAX_WINDOW`` keys."""
    settings = replace(settings_of(mixer), keep_softmax_every=2, softmax_window=SOFTMAX_WINDOW)
    return write_liger(directory, SHAPES[mixer], settings=settings, initializer_range=SCALE[mixer], **SIZES[mixer])
