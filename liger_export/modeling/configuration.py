"""The Liger configurations as transformers sees them: the backbone's own fields and the Liger ones."""

from transformers import LlamaConfig

from liger_export.config import LigerConfig

__all__ = ["LigerGLAConfig", "liger_config"]


class LigerGLAConfig(LlamaConfig):  # type: ignore[misc]
    """A Llama with Liger-GLA attention.

    Attributes:
        window_size: keys the softmax window attends to, the current one included.
        gate_normalizer: divisor of the log gate.
    """

    model_type = "liger_gla"

    window_size: int = 64
    gate_normalizer: float = 16.0


def liger_config(config: LlamaConfig) -> LigerConfig:
    """The same model as the rest of the project describes it."""
    return LigerConfig.from_dict({**config.to_dict(), "model_type": config.model_type})
