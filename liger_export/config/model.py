"""The configuration of a Liger model, read from its ``config.json``. Everything else is derived from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from liger_export.config.backbones import BACKBONES, MODEL_TYPES, Backbone
from liger_export.config.fields import Fields, read_token_ids
from liger_export.config.mixers import SOFTMAX
from liger_export.config.rope import RopeConfig, read_rope
from liger_export.errors import CheckpointError, UnsupportedModelError

__all__ = ["FORMAT", "LIGER_DEFAULTS", "LigerConfig", "check_supported"]

FORMAT = 1  # of the Liger fields; the paper implementation writes none

LIGER_DEFAULTS: dict[str, int | float] = {
    "window_size": 64,
    "gate_normalizer": 16.0,
    "recurrent_weight": 0.5,
    "softmax_window": 1024,
}

LARGEST = 2**31 - 1  # of every size: dimensions of tensors are 32-bit integers in some libraries
MOST_SLOTS = 1024  # that an error lists

POSITIVE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "window_size", "gate_normalizer"),
    *("num_slots", "feature_dim", "softmax_window"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LigerConfig:
    """The configuration of a Liger model. The state table and the tensor names are derived from it.

    Attributes:
        qkv_bias: true if the q, k and v projections have biases.
        output_bias: true if the attention's output projection has a bias.
        mlp_bias: true if the gate, up and down projections have biases.
        qk_norm: true if each head's query and key are RMS-normalized.
        window_size: number of keys in the softmax window, including the current key.
        gate_normalizer: divisor of the log gate of gla and gsa (arXiv 2503.01496 uses 16, as in GLA).
        recurrent_weight: weight of the recurrence in the output of gla, hgrn2 and gsa; the window has the rest.
        num_slots: number of memory slots M of gsa; must divide ``head_dim``.
        feature_dim: outputs of each learned feature map of lolcats, half the number of features.
        learned_window_factors: true if lolcats scales the window by a learned factor per head, false for 0.1.
        softmax_layers: indices of layers that keep softmax attention.
        softmax_window: number of keys in the window of those layers, including the current key.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    window_size: int
    gate_normalizer: float
    recurrent_weight: float
    num_slots: int
    feature_dim: int
    learned_window_factors: bool
    softmax_layers: tuple[int, ...]
    softmax_window: int

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not 0 < getattr(self, name) <= LARGEST:
                raise UnsupportedModelError(
                    f"{name} is {getattr(self, name)}.", f"It must be greater than zero, and at most {LARGEST:,}."
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UnsupportedModelError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}).",
                "Every key/value head must serve the same number of query heads: correct config.json.",
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(
                f"head_dim is {self.head_dim}.", "Rotary embedding rotates pairs of values: head_dim must be even."
            )
        self._check_liger_fields()

    def _check_liger_fields(self) -> None:
        if self.mixer == "gsa" and self.head_dim % self.num_slots:
            most = min(self.head_dim, MOST_SLOTS)
            divisors = [str(count) for count in range(1, most + 1) if self.head_dim % count == 0]
            raise UnsupportedModelError(
                f"num_slots is {self.num_slots}, which does not divide head_dim ({self.head_dim}).",
                f"Each slot's gate is the mean of head_dim / num_slots values: choose one of {', '.join(divisors)}.",
            )
        if not self.recurrent_weight < 1:
            raise UnsupportedModelError(
                f"recurrent_weight is {self.recurrent_weight}.", "It must be between 0 and 1; the paper uses 0.5."
            )
        outside = [layer for layer in self.softmax_layers if not 0 <= layer < self.num_hidden_layers]
        if outside or list(self.softmax_layers) != sorted(set(self.softmax_layers)):
            raise UnsupportedModelError(
                f"softmax_layers is {list(self.softmax_layers)}.",
                f"It must list layers from 0 to {self.num_hidden_layers - 1}, each once, in ascending order.",
            )

    @property
    def backbone(self) -> str:
        """``model_type`` of the pretrained architecture, such as ``llama``."""
        return MODEL_TYPES[self.model_type].backbone

    @property
    def mixer(self) -> str:
        """Replacement for softmax attention, such as ``gla``."""
        return MODEL_TYPES[self.model_type].mixer

    @property
    def num_features(self) -> int:
        """Features F per head of lolcats: softmax(x A) and softmax(-x A), with ``feature_dim`` values each."""
        return 2 * self.feature_dim

    def layer_mixer(self, layer: int) -> str:
        """Mixer of one layer: the model's, or ``softmax`` if the layer keeps softmax attention."""
        return SOFTMAX if layer in self.softmax_layers else self.mixer

    def layer_window(self, layer: int) -> int:
        """Number of keys in one layer's window."""
        return self.softmax_window if layer in self.softmax_layers else self.window_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LigerConfig":
        """Read the values of a ``config.json`` from transformers 4 or 5.

        Raises:
            UnsupportedModelError: the model type, activation, rope type or quantization is not supported.
            CheckpointError: a field is missing or invalid.
        """
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            linearizable = isinstance(model_type, str) and model_type in BACKBONES
            supported = f"Supported model types: {', '.join(sorted(MODEL_TYPES))}."
            fix = "Run `liger-export linearize` first." if linearizable else supported
            raise UnsupportedModelError(f"config.json has model_type {model_type!r}, which is not a Liger model.", fix)
        check_supported(values)
        _check_format(values)
        backbone = BACKBONES[MODEL_TYPES[model_type].backbone]
        fields = Fields(values)
        heads = fields.integer("num_attention_heads")
        head_dim = backbone.head_dim or fields.integer("hidden_size") // max(heads, 1)
        head_dim = fields.integer("head_dim", head_dim)
        return cls(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=fields.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            max_position_embeddings=fields.integer("max_position_embeddings"),
            rms_norm_eps=fields.number("rms_norm_eps"),
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            **_biases_and_norms(backbone, fields),
            rope=read_rope(values),
            bos_token_id=next(iter(read_token_ids(values.get("bos_token_id"))), None),
            eos_token_ids=read_token_ids(values.get("eos_token_id")),
            num_slots=fields.integer("num_slots", head_dim),
            feature_dim=fields.integer("feature_dim", head_dim),
            **_liger_fields(fields),
        )


def _biases_and_norms(backbone: Backbone, fields: Fields) -> dict[str, Any]:
    """Biases and norms that the backbone determines, or ``config.json`` where the backbone leaves them open.

    ``qkv_bias`` and ``qk_norm`` in config.json override the backbone: the paper's Qwen3 has biases and no norms.
    """

    def decide(fixed: bool | None, field: str) -> bool:
        return fields.boolean(field, False) if fixed is None else fixed

    return {
        "qkv_bias": fields.boolean("qkv_bias", decide(backbone.qkv_bias, "attention_bias")),
        "output_bias": decide(backbone.output_bias, "attention_bias"),
        "mlp_bias": decide(backbone.mlp_bias, "mlp_bias"),
        "qk_norm": fields.boolean("qk_norm", backbone.qk_norm),
    }


def _liger_fields(fields: Fields) -> dict[str, Any]:
    read: dict[str, Any] = {
        name: fields.integer(name, default) if isinstance(default, int) else fields.number(name, default)
        for name, default in LIGER_DEFAULTS.items()
    }
    read["learned_window_factors"] = fields.boolean("learned_window_factors", True)
    read["softmax_layers"] = fields.integers("softmax_layers")
    return read


def _check_format(values: Mapping[str, Any]) -> None:
    found = values.get("liger_format")
    if found is None:
        raise CheckpointError(
            "config.json has no liger_format.",
            "Use liger_export.checkpoint.open_liger, which reads checkpoints of the paper implementation.",
        )
    if type(found) is not int or found > FORMAT:
        raise UnsupportedModelError(
            f"config.json has liger_format {found!r}; this version reads up to {FORMAT}.", "Upgrade liger-export."
        )


def check_supported(values: Mapping[str, Any]) -> None:
    """Check a base model's ``config.json`` for settings that change the computation and are not implemented.

    Raises:
        UnsupportedModelError: such a setting is present; the error names it.
        CheckpointError: the rope parameters are invalid.
    """
    if values.get("quantization_config"):
        raise UnsupportedModelError(
            "The checkpoint's weights are quantized (config.json has quantization_config).",
            "Start from the unquantized checkpoint.",
        )
    if values.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(
            f"hidden_act is {values['hidden_act']!r}.",
            "Only 'silu' is supported, the activation of Llama, Mistral and Qwen.",
        )
    read_rope(values)
