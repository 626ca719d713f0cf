"""Liger models as transformers models."""

from transformers import AutoConfig, AutoModelForCausalLM

from liger_export.modeling.cache import LigerCache
from liger_export.modeling.configuration import CONFIG_CLASSES, LigerPreTrainedConfig, liger_config
from liger_export.modeling.model import MODEL_CLASSES, LigerForCausalLM, LigerModel

__all__ = [
    "CONFIG_CLASSES",
    "MODEL_CLASSES",
    "LigerCache",
    "LigerForCausalLM",
    "LigerModel",
    "LigerPreTrainedConfig",
    "liger_config",
    "register",
]


def register() -> None:
    """Register the Liger model types with ``AutoConfig`` and ``AutoModelForCausalLM``. Repeated calls are harmless."""
    for model_type, model_class in MODEL_CLASSES.items():
        AutoConfig.register(model_type, model_class.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model_class.config_class, model_class, exist_ok=True)
