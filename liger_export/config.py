"""What a Liger checkpoint's ``config.json`` says, read strictly and without importing torch.

Model types are data: one more combination of backbone and mixer is one more row in ``MODEL_TYPES``.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from liger_export.errors import CheckpointError, UnsupportedModelError

__all__ = [
    "BACKBONES",
    "MODEL_TYPES",
    "LigerConfig",
    "ModelType",
    "RopeConfig",
    "inverse_frequencies",
    "read_config_json",
]


@dataclass(frozen=True, slots=True)
class ModelType:
    """What one Liger ``model_type`` combines.

    Attributes:
        backbone: ``model_type`` of the pretrained architecture.
        mixer: the recurrent half of Liger attention.
        architecture: class name, as ``config.json`` lists it.
    """

    backbone: str
    mixer: str
    architecture: str


MODEL_TYPES = {"liger_gla": ModelType(backbone="llama", mixer="gla", architecture="LigerGLAForCausalLM")}

BACKBONES = frozenset(parts.backbone for parts in MODEL_TYPES.values())


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: ``default``, or ``llama3`` with its four scaling values."""

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class LigerConfig:
    """A Liger model's shape and its Liger fields; the source of the state table and of the tensor names.

    Attributes:
        window_size: keys the softmax window attends to, the current one included.
        gate_normalizer: divisor of the log gate (arXiv 2503.01496 takes 16 from GLA, arXiv 2312.06635).
        attention_bias: whether q, k, v and o projections have biases.
        mlp_bias: whether the gate, up and down projections have biases.
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
    attention_bias: bool
    mlp_bias: bool
    rope: RopeConfig
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    window_size: int = 64
    gate_normalizer: float = 16.0

    def __post_init__(self) -> None:
        positive = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "head_dim max_position_embeddings window_size gate_normalizer"
        )
        for name in positive.split():
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

    @property
    def mixer(self) -> str:
        """Name of the recurrent half of Liger attention, such as ``gla``."""
        return MODEL_TYPES[self.model_type].mixer

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
        fields = _Fields(values)
        hidden_size, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
        return cls(
            model_type=str(model_type),
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=fields.integer("num_key_value_heads", heads),
            head_dim=fields.integer("head_dim", hidden_size // max(heads, 1)),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            rms_norm_eps=fields.number("rms_norm_eps"),
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            attention_bias=fields.boolean("attention_bias", False),
            mlp_bias=fields.boolean("mlp_bias", False),
            rope=_read_rope(values),
            bos_token_id=next(iter(_token_ids(values.get("bos_token_id"))), None),
            eos_token_ids=_token_ids(values.get("eos_token_id")),
            window_size=fields.integer("window_size", 64),
            gate_normalizer=fields.number("gate_normalizer", 16.0),
        )


class _Fields:
    """Typed look-ups in a config.json, with errors that name the field."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def _get(self, name: str, kinds: tuple[type, ...], default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            value = default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found = "has no" if value is None else f"has {value!r} as"
            raise CheckpointError(
                f"config.json {found} {name!r}.", f"It needs a {kinds[0].__name__} there: restore the original file."
            )
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self._get(name, (int,), default))

    def number(self, name: str, default: float | None = None) -> float:
        value = float(self._get(name, (float, int), default))
        if not (math.isfinite(value) and value > 0):
            raise CheckpointError(f"config.json has {value} as {name!r}.", "It needs a number greater than zero there.")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        return bool(self._get(name, (bool,), default))


def read_config_json(directory: Path) -> dict[str, Any]:
    """Read ``config.json`` of a checkpoint directory.

    Raises:
        CheckpointError: there is no directory, no ``config.json``, or no JSON object in it.
    """
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        cause = f"{directory} holds no config.json." if directory.is_dir() else f"{directory} is not a directory."
        raise CheckpointError(cause, "Pass a Hugging Face checkpoint directory.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).", "Restore the original file.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.", "Restore the original file.")
    return values


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
            f"hidden_act is {values['hidden_act']!r}.", "Only 'silu', which Llama uses, is supported."
        )
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError(
            f"partial_rotary_factor is {values['partial_rotary_factor']}.", "Only whole heads can be rotated."
        )
    _read_rope(values)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and token >= 0 for token in ids):
        raise CheckpointError(f"config.json has {value!r} as a token id.", "Restore the original file.")
    return ids


def _read_rope(values: Mapping[str, Any]) -> RopeConfig:
    """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` with ``rope_scaling`` (transformers 4)."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise CheckpointError(f"config.json has {scaling!r} as rope parameters.", "Restore the original file.")
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    fields = _Fields({"rope_theta": values.get("rope_theta"), **scaling})
    theta = fields.number("rope_theta", 10000.0)
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type != "llama3":
        raise UnsupportedModelError(
            f"The rope type is {rope_type!r}.", "Supported: 'default' and 'llama3' (Llama 3.1 and later)."
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if name not in scaling]
    if missing:
        raise CheckpointError(
            f"The llama3 rope scaling in config.json lacks {', '.join(missing)}.", "Restore the original file."
        )
    factor, low, high = (fields.number(name) for name in names[:3])
    if low >= high:
        raise CheckpointError(
            f"low_freq_factor is {low} and high_freq_factor {high}.", "The first must be the smaller one."
        )
    return RopeConfig(theta, "llama3", factor, low, high, fields.integer(names[3]))


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> npt.NDArray[np.float32]:
    """Rotary inverse frequencies, float32 [head_dim / 2].

    RoPE is arXiv 2104.09864, equation 15. The ``llama3`` scaling keeps short wavelengths, divides long ones
    by ``factor`` and blends in between, as published with Llama 3.1.
    """
    frequencies = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.rope_type == "llama3":
        wavelengths = 2 * math.pi / frequencies
        rotations = rope.original_max_position_embeddings / wavelengths
        blend = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)  # 0: a long wavelength, wholly scaled; 1: a short one, kept
        frequencies = (1 - blend) * frequencies / rope.factor + blend * frequencies
    return frequencies.astype(np.float32)
