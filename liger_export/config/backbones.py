"""The supported backbones, one row per backbone, and the model types that join each with each mixer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from liger_export.config.fields import Fields
from liger_export.config.mixers import MIXERS

__all__ = ["BACKBONES", "MODEL_TYPES", "Backbone", "ModelType", "base_window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """What a pretrained architecture's layers hold beyond Llama's.

    Attributes:
        qkv_bias: whether q, k and v have biases; None: the config's ``attention_bias`` says.
        output_bias: the same of the output projection.
        mlp_bias: the same of the feed-forward projections; None: the config's ``mlp_bias`` says.
        qk_norm: whether each head's query and key are RMS-normalized before they are rotated.
        head_dim: head size where ``config.json`` names none; None: hidden_size / num_attention_heads.
    """

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = False
    qk_norm: bool = False
    head_dim: int | None = None


BACKBONES = {
    "llama": Backbone(mlp_bias=None),
    "mistral": Backbone(qkv_bias=False, output_bias=False),
    "qwen2": Backbone(qkv_bias=True, output_bias=False),
    "qwen3": Backbone(qk_norm=True, head_dim=128),
}


@dataclass(frozen=True, slots=True)
class ModelType:
    """What one Liger ``model_type`` combines.

    Attributes:
        backbone: ``model_type`` of the pretrained architecture, a key of ``BACKBONES``.
        mixer: what replaces its softmax attention, a key of ``MIXERS``.
        architecture: class name, as ``config.json`` lists it.
    """

    backbone: str
    mixer: str
    architecture: str


def _model_types() -> dict[str, ModelType]:
    """Every backbone with every mixer, under the names of the Liger paper's implementation where it has one."""
    types = {}
    for backbone in BACKBONES:
        family = "" if backbone == "llama" else backbone
        for key, mixer in MIXERS.items():
            name = "_".join(part for part in ("liger", family, key) if part)
            architecture = f"Liger{family.capitalize()}{mixer.title}ForCausalLM"
            types["lolcats" if name == "liger_lolcats" else name] = ModelType(backbone, key, architecture)
    return types


MODEL_TYPES = _model_types()


def base_window(backbone: str, values: Mapping[str, Any], layer: int) -> int | None:
    """Keys that a layer of the pretrained model attends to by its own ``config.json``; None: all of them."""
    fields = Fields(values)
    named = "sliding_window" in values
    if backbone not in ("mistral", "qwen2", "qwen3") or (named and values["sliding_window"] is None):
        return None
    if backbone != "mistral":
        if not fields.boolean("use_sliding_window", False):
            return None
        kinds = values.get("layer_types") or []
        slides = kinds[layer] == "sliding_attention" if layer < len(kinds) else _slides_by_default(fields, layer)
        if not slides:
            return None
    return fields.integer("sliding_window", 4096)


def _slides_by_default(fields: Fields, layer: int) -> bool:
    return layer >= fields.integer("max_window_layers", 28)
