"""The supported backbones, one row per backbone, and the model types that combine a backbone with a mixer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from liger_export.config.fields import Fields
from liger_export.config.mixers import MIXERS

__all__ = ["BACKBONES", "MODEL_TYPES", "Backbone", "ModelType", "base_window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """The differences between a pretrained architecture's layers and Llama's.

    Attributes:
        qkv_bias: true if the q, k and v projections have biases; None if ``attention_bias`` in ``config.json`` decides.
        output_bias: the same for the attention's output projection.
        mlp_bias: true if the feed-forward projections have biases; None if ``mlp_bias`` in ``config.json`` decides.
        qk_norm: true if each head's query and key are RMS-normalized before rotation.
        sliding_window: ``always`` if every layer may have a sliding window, ``optional`` if ``use_sliding_window``
            decides, None if no layer has one.
        head_dim: head size if ``config.json`` has none; None for hidden_size / num_attention_heads.
    """

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = False
    qk_norm: bool = False
    sliding_window: Literal["always", "optional"] | None = None
    head_dim: int | None = None


BACKBONES = {
    "llama": Backbone(mlp_bias=None),
    "mistral": Backbone(qkv_bias=False, output_bias=False, sliding_window="always"),
    "qwen2": Backbone(qkv_bias=True, output_bias=False, sliding_window="optional"),
    "qwen3": Backbone(qk_norm=True, sliding_window="optional", head_dim=128),
}


@dataclass(frozen=True, slots=True)
class ModelType:
    """The parts of one Liger ``model_type``.

    Attributes:
        backbone: ``model_type`` of the pretrained architecture, a key of ``BACKBONES``.
        mixer: the replacement for its softmax attention, a key of ``MIXERS``.
        architecture: class name in the ``architectures`` of ``config.json``.
    """

    backbone: str
    mixer: str
    architecture: str


def _model_types() -> dict[str, ModelType]:
    """Combine every backbone with every mixer, with the paper implementation's names where it has them."""
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
    """Number of keys a layer of the pretrained model attends to, from its ``config.json``; None if unlimited."""
    kind, fields = BACKBONES[backbone].sliding_window, Fields(values)
    is_null = "sliding_window" in values and values["sliding_window"] is None
    if kind is None or is_null:
        return None
    if kind == "optional":
        if not fields.boolean("use_sliding_window", False):
            return None
        kinds = values.get("layer_types") or []
        slides = kinds[layer] == "sliding_attention" if layer < len(kinds) else _slides_by_default(fields, layer)
        if not slides:
            return None
    return fields.integer("sliding_window", 4096)


def _slides_by_default(fields: Fields, layer: int) -> bool:
    return layer >= fields.integer("max_window_layers", 28)
