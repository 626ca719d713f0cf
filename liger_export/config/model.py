"""A Liger model's shape and Liger fields, from its ``config.json``: what everything else is derived from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from liger_export.config.backbones import BACKBONES, MODEL_TYPES, Backbone
from liger_export.config.fields import Fields, read_token_ids
from liger_export.config.mixers import SOFTMAX
from liger_export.config.rope import RopeConfig, read_rope
from liger_export.errors import CheckpointError, UnsupportedModelError

__all__ = ["FORMAT", "LIGER_DEFAULTS", "LigerConfig", "check_supported"]

FORMAT = 1  # of the Liger fields; a config.json without it was written by the paper's implementation

LIGER_DEFAULTS: dict[str, int | float] = {
    "window_size": 64,
    "gate_normalizer": 16.0,
    "recurrent_weight": 0.5,
    "softmax_window": 1024,
}

POSITIVE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "window_size", "gate_normalizer"),
    *("num_slots", "feature_dim", "softmax_window"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LigerConfig:
    """A Liger model; the source of the state table and of the tensor names.

    Attributes:
        qkv_bias: whether the q, k and v projections have biases.
        output_bias: whether the attention's output projection has one.
        mlp_bias: whether the gate, up and down projections have biases.
        qk_norm: whether each head's query and key are RMS-normalized.
        window_size: keys the softmax window attends to, the current one included.
        gate_normalizer: divisor of the log gate of gla and gsa (arXiv 2503.01496 takes 16 from GLA).
        recurrent_weight: share of the recurrence in the output of gla, hgrn2 and gsa; the window has the rest.
        num_slots: memory slots M of gsa; divides ``head_dim``.
        feature_dim: outputs of each of lolcats' learned maps; the features are twice as many.
        learned_window_factors: whether lolcats weighs the window by a learned factor per head, or by 0.1.
        softmax_layers: layers that keep softmax attention.
        softmax_window: keys those layers attend to, the current one included.
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
            if getattr(self, name) <= 0:
                raise UnsupportedModelError(f"{name} is {getattr(self, name)}.", "It must be greater than zero.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UnsupportedModelError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}).",
                "Query heads share key/value heads in equal groups: correct config.json.",
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(
                f"head_dim is {self.head_dim}.", "Rotary embedding turns pairs of values: head_dim must be even."
            )
        self._check_liger_fields()

    def _check_liger_fields(self) -> None:
        if self.mixer == "gsa" and self.head_dim % self.num_slots:
            divisors = [str(count) for count in range(1, self.head_dim + 1) if self.head_dim % count == 0]
            raise UnsupportedModelError(
                f"num_slots is {self.num_slots}, which does not divide head_dim ({self.head_dim}).",
                f"Each slot's gate is the mean of head_dim / num_slots values: choose one of {', '.join(divisors)}.",
            )
        if not self.recurrent_weight < 1:
            raise UnsupportedModelError(
                f"recurrent_weight is {self.recurrent_weight}.", "It must lie between 0 and 1; the paper's is 0.5."
            )
        outside = [layer for layer in self.softmax_layers if not 0 <= layer < self.num_hidden_layers]
        if outside or list(self.softmax_layers) != sorted(set(self.softmax_layers)):
            raise UnsupportedModelError(
                f"softmax_layers is {list(self.softmax_layers)}.",
                f"It must list layers from 0 to {self.num_hidden_layers - 1}, each once, in order.",
            )

    @property
    def backbone(self) -> str:
        """``model_type`` of the pretrained architecture, such as ``llama``."""
        return MODEL_TYPES[self.model_type].backbone

    @property
    def mixer(self) -> str:
        """What replaces softmax attention, such as ``gla``."""
        return MODEL_TYPES[self.model_type].mixer

    @property
    def num_features(self) -> int:
        """F, the features per head of lolcats: softmax(x A) beside softmax(-x A), ``feature_dim`` each."""
        return 2 * self.feature_dim

    def layer_mixer(self, layer: int) -> str:
        """Mixer of one layer: the model's, or ``softmax`` where the layer keeps it."""
        return SOFTMAX if layer in self.softmax_layers else self.mixer

    def layer_window(self, layer: int) -> int:
        """Keys in one layer's window."""
        return self.softmax_window if layer in self.softmax_layers else self.window_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LigerConfig":
        """Read the fields of a ``config.json``, as transformers 4 or 5 writes it.

        Raises:
            UnsupportedModelError: the model type, activation, rope type or a quantization is not supported.
            CheckpointError: a field is missing or of the wrong type.
        """
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            linearizable = isinstance(model_type, str) and model_type in BACKBONES
            fix = "Run `liger-export linearize` on it first." if linearizable else f"Supported: {_listed(MODEL_TYPES)}."
            raise UnsupportedModelError(f"config.json has model_type {model_type!r}, which is no Liger model.", fix)
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
    """What the backbone says, or its ``config.json`` where the backbone leaves it open.

    ``qkv_bias`` and ``qk_norm`` in a config.json overrule the backbone: the paper's Qwen3 has biases and no norms.
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
            "Read the checkpoint with liger_export.checkpoint.open_liger, which knows the paper's implementation.",
        )
    if type(found) is not int or found > FORMAT:
        raise UnsupportedModelError(
            f"config.json has liger_format {found!r}; this version reads up to {FORMAT}.", "Upgrade liger-export."
        )


def check_supported(values: Mapping[str, Any]) -> None:
    """Refuse settings that would change what the model computes and that nothing here implements.

    Raises:
        UnsupportedModelError: naming the setting.
    """
    if values.get("quantization_config"):
        raise UnsupportedModelError(
            "The checkpoint's weights are quantized (config.json has a quantization_config).",
            "Start from the unquantized checkpoint.",
        )
    if values.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(
            f"hidden_act is {values['hidden_act']!r}.", "Only 'silu', which Llama, Mistral and Qwen use, is supported."
        )
    read_rope(values)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names))
