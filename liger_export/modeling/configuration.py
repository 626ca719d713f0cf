"""The Liger configurations for transformers: the backbone's fields and the Liger fields."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from liger_export.config import FORMAT, LIGER_DEFAULTS, MIXERS, MODEL_TYPES, LigerConfig

__all__ = ["CONFIG_CLASSES", "LigerPreTrainedConfig", "liger_config"]


class LigerPreTrainedConfig(PreTrainedConfig):  # type: ignore[misc]
    """The fields that every Liger configuration adds to its backbone's.

    Attributes:
        liger_format: version of these fields; None for a config.json written by the Liger paper's implementation.
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
        """Build from the values of a config.json. A missing ``liger_format`` stays None."""
        return super().from_dict({"liger_format": None, **config_dict}, **kwargs)


def _config_class(model_type: str) -> type[LigerPreTrainedConfig]:
    """Make the configuration class of one model type, with the fields of Liger, the mixer and the backbone."""
    parts = MODEL_TYPES[model_type]
    fields = {name: LIGER_DEFAULTS.get(name) for name in MIXERS[parts.mixer].fields}
    annotations = dict.fromkeys(fields, float | int | None)
    namespace = {"model_type": model_type, "__module__": __name__, "__annotations__": annotations, **fields}
    name = parts.architecture.removesuffix("ForCausalLM") + "Config"
    return type(name, (LigerPreTrainedConfig, CONFIG_MAPPING[parts.backbone]), namespace)


CONFIG_CLASSES = {model_type: _config_class(model_type) for model_type in MODEL_TYPES}


def liger_config(config: PreTrainedConfig) -> LigerConfig:
    """Convert a transformers configuration to a ``LigerConfig``."""
    return LigerConfig.from_dict({**config.to_dict(), "model_type": config.model_type})
