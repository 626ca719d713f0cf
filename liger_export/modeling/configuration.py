"""The Liger configurations as transformers sees them: the backbone's own fields and the Liger ones."""

from typing import Any

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from liger_export.config import FORMAT, LIGER_DEFAULTS, MIXERS, MODEL_TYPES, LigerConfig

__all__ = ["CONFIG_CLASSES", "LigerPreTrainedConfig", "liger_config"]

BACKBONE_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


class LigerPreTrainedConfig(PreTrainedConfig):  # type: ignore[misc]
    """What every Liger configuration adds to its backbone's.

    Attributes:
        liger_format: version of these fields; None in a config.json of the Liger paper's implementation.
        window_size: keys the softmax window attends to, the current one included.
        softmax_layers: layers that keep softmax attention.
        softmax_window: keys those layers attend to, the current one included.
    """

    liger_format: int | None = FORMAT
    window_size: int | None = int(LIGER_DEFAULTS["window_size"])
    softmax_layers: list[int] | tuple[int, ...] = ()
    softmax_window: int = int(LIGER_DEFAULTS["softmax_window"])

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a config.json; without a ``liger_format`` in it, there is none."""
        return super().from_dict({"liger_format": None, **config_dict}, **kwargs)


def _config_class(model_type: str) -> type[LigerPreTrainedConfig]:
    """The configuration of one model type: Liger's fields, the mixer's, and the backbone's."""
    parts = MODEL_TYPES[model_type]
    fields = {name: LIGER_DEFAULTS.get(name) for name in MIXERS[parts.mixer].fields}
    annotations = dict.fromkeys(fields, float | int | None)
    namespace = {"model_type": model_type, "__module__": __name__, "__annotations__": annotations, **fields}
    name = parts.architecture.removesuffix("ForCausalLM") + "Config"
    return type(name, (LigerPreTrainedConfig, BACKBONE_CONFIGS[parts.backbone]), namespace)


CONFIG_CLASSES = {model_type: _config_class(model_type) for model_type in MODEL_TYPES}


def liger_config(config: PreTrainedConfig) -> LigerConfig:
    """The same model as the rest of the project describes it."""
    return LigerConfig.from_dict({**config.to_dict(), "model_type": config.model_type})
