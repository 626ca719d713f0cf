"""``linearize``: write a Liger checkpoint with the weights of a pretrained transformer."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from liger_export.checkpoint import find_base, learned_tensors, open_base, weight_bytes, write_weights
from liger_export.checkpoint.base import BaseModel
from liger_export.config import (
    BACKBONES,
    FORMAT,
    LIGER_DEFAULTS,
    MIXERS,
    MODEL_TYPES,
    Fields,
    LigerConfig,
    base_window,
    without_machine_path,
)
from liger_export.errors import CheckpointError, InputError, UnsupportedModelError
from liger_export.files import reading, require_space
from liger_export.ops import initial_parameters
from liger_export.publishing import new_directory

__all__ = ["LinearizeSettings", "liger_config_values", "linearize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearizeSettings:
    """Settings of ``linearize``. Defaults are those of the Liger paper; None is a default that depends on the model.

    Attributes:
        mixer: replacement for softmax attention, a key of ``config.MIXERS``.
        window_size: keys in the softmax window, including the current one.
        gate_normalizer: divisor of the log gate (gla, gsa); default: 16.
        recurrent_weight: weight of the recurrence, the window gets the rest (gla, hgrn2, gsa); default: 0.5.
        num_slots: memory slots per key/value head (gsa); default: the head size.
        feature_dim: outputs of each learned feature map (lolcats); default: the head size.
        keep_softmax_every: keep softmax attention in every n-th layer: n, 2n, 3n, ..., counted from 1.
        softmax_window: keys in the window of those layers; default: 1,024, or the base's limit if that is smaller.
    """

    mixer: str = "gla"
    window_size: int = 64
    gate_normalizer: float | None = None
    recurrent_weight: float | None = None
    num_slots: int | None = None
    feature_dim: int | None = None
    keep_softmax_every: int | None = None
    softmax_window: int | None = None

    def __post_init__(self) -> None:
        for name in ("gate_normalizer", "recurrent_weight"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}.", "It must be a number greater than zero.")

    def mixer_fields(self) -> dict[str, int | float]:
        """The config fields of the mixer: given values, and defaults for the others if they have one.

        Raises:
            InputError: a given field does not belong to the mixer.
        """
        own = MIXERS[self.mixer].fields
        fields = {name: LIGER_DEFAULTS[name] for name in own if name in LIGER_DEFAULTS}
        for name in {name for mixer in MIXERS.values() for name in mixer.fields}:
            value = getattr(self, name)
            if value is not None and name not in own:
                having = sorted(key for key, mixer in MIXERS.items() if name in mixer.fields)
                raise InputError(
                    f"The mixer {self.mixer} has no {name}.",
                    f"Omit it, or choose a mixer that has it: {', '.join(having)}.",
                )
            if value is not None:
                fields[name] = value
        return fields


def linearize(
    base: str, output: Path, settings: LinearizeSettings | None = None, *, overwrite: bool = False
) -> LigerConfig:
    """Write a Liger checkpoint with the weights and tokenizer of ``base``.

    Liger adds no parameters (arXiv 2503.01496, section 3): weight files are copied byte for byte. The weights of a GGUF
    file are dequantized and rounded to bfloat16. The feature maps of LoLCATs are added in a separate file,
    initialized to the identity.

    Args:
        base: local Hugging Face checkpoint directory, GGUF file or directory with one, or a Hub ID to download
            (``owner/name``, or ``owner/name:FILE.gguf`` for one of several GGUF files).
        output: directory to create.
        settings: mixer, window and their options; default: those of the Liger paper.
        overwrite: replace ``output`` if it exists.

    Returns:
        The config of the Liger checkpoint.

    Raises:
        CheckpointError: ``base`` is incomplete or damaged.
        UnsupportedModelError: the architecture of ``base`` or a setting is not supported.
        InputError: settings contradict each other or the base.
        OutputError: ``output`` exists or cannot be written.
    """
    path = find_base(base)
    with reading(path, CheckpointError, "Restore the original checkpoint."):
        opened = open_base(path)
        values, config, learned = _described(opened, settings or LinearizeSettings())

    require_space(output, weight_bytes(opened.checkpoint) + sum(tensor.nbytes for tensor in learned.values()))
    with new_directory(output, overwrite, inputs=(path,)) as partial:
        write_weights(opened.checkpoint, learned, partial)
        opened.write_companions(partial)
        (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    return config


def _described(opened: BaseModel, settings: LinearizeSettings) -> tuple[dict[str, Any], LigerConfig, dict[str, Tensor]]:
    """Check a base. Returns the config of its Liger checkpoint, as values and parsed, and the learned tensors."""
    opened.checkpoint.check_layers(Fields(opened.config_values).integer("num_hidden_layers"))
    values = liger_config_values(opened.config_values, settings)
    config = LigerConfig.from_dict(values)
    opened.checkpoint.check(config, excluded=learned_tensors(config))
    return values, config, _initial_tensors(config)


def liger_config_values(base: dict[str, Any], settings: LinearizeSettings) -> dict[str, Any]:
    """Derive the ``config.json`` of a Liger checkpoint from the ``config.json`` of its base.

    Raises:
        CheckpointError: ``base`` has no ``model_type``.
        UnsupportedModelError: the architecture or the mixer is not supported.
        InputError: a setting does not fit the base or the mixer.
    """
    backbone = base.get("model_type")
    if not isinstance(backbone, str):
        raise CheckpointError(f"config.json has {backbone!r} as model_type.", "Restore the original file.")
    if backbone in MODEL_TYPES:
        raise UnsupportedModelError(f"The checkpoint is already a Liger model ({backbone}).", "Use it directly.")
    if backbone not in BACKBONES:
        raise UnsupportedModelError(
            f"config.json has model_type {backbone!r}.", f"Supported: {', '.join(sorted(BACKBONES))}."
        )
    if settings.mixer not in MIXERS:
        raise UnsupportedModelError(f"There is no mixer {settings.mixer!r}.", f"Supported: {', '.join(MIXERS)}.")
    pairs = {(parts.backbone, parts.mixer): name for name, parts in MODEL_TYPES.items()}
    model_type = pairs[backbone, settings.mixer]
    return {
        **without_machine_path(base),
        "model_type": model_type,
        "architectures": [MODEL_TYPES[model_type].architecture],
        "liger_format": FORMAT,
        "window_size": settings.window_size,
        **settings.mixer_fields(),
        **_softmax_fields(base, settings),
    }


def _softmax_fields(base: dict[str, Any], settings: LinearizeSettings) -> dict[str, Any]:
    """The config fields for layers that keep softmax attention. Raises InputError if a window exceeds the base's."""
    every, layers = settings.keep_softmax_every, Fields(base).integer("num_hidden_layers")
    if every is None:
        if settings.softmax_window is not None:
            raise InputError(
                "softmax_window is set, but no layer keeps softmax attention.",
                "Also set keep_softmax_every, or omit softmax_window.",
            )
        _check_windows(base, range(layers), settings.window_size, "window_size")
        return {}
    if not 2 <= every <= layers:
        raise InputError(
            f"keep_softmax_every is {every} and the model has {layers} layers.", f"Choose a number from 2 to {layers}."
        )
    kept = range(every - 1, layers, every)
    bounds = [base_window(base["model_type"], base, layer) for layer in kept]
    trained = [bound for bound in (*bounds, base.get("max_position_embeddings")) if bound]
    window = settings.softmax_window or min(int(LIGER_DEFAULTS["softmax_window"]), *trained)
    _check_windows(base, kept, window, "softmax_window")
    _check_windows(base, [layer for layer in range(layers) if layer not in kept], settings.window_size, "window_size")
    return {"softmax_layers": list(kept), "softmax_window": window}


def _check_windows(base: dict[str, Any], layers: Iterable[int], window: int, name: str) -> None:
    for layer in layers:
        bound = base_window(base["model_type"], base, layer)
        if bound and window > bound:
            raise InputError(
                f"{name} is {window}, but the base has a sliding window of {bound} keys in layer {layer}.",
                f"Choose a {name} of at most {bound}: the layer was not trained on longer distances.",
            )


def _initial_tensors(config: LigerConfig) -> dict[str, Tensor]:
    """Initial values of the mixer's learned parameters, by tensor name."""
    names = learned_tensors(config)
    initial = initial_parameters(config) if names else {}
    return {name: initial[name.rsplit(".", 1)[1]].clone() for name in names}
