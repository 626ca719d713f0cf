"""From a pretrained checkpoint to a Liger checkpoint: the same weights under a Liger config."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from liger_export.checkpoint import Checkpoint, learned_tensors, write_weights
from liger_export.config import (
    BACKBONES,
    FORMAT,
    LIGER_DEFAULTS,
    MIXERS,
    MODEL_TYPES,
    Fields,
    LigerConfig,
    base_window,
    read_config_json,
)
from liger_export.errors import CheckpointError, InputError, UnsupportedModelError
from liger_export.files import TOKENIZER_FILES, copy_files, new_directory, require_space
from liger_export.ops import initial_parameters

__all__ = ["LinearizeSettings", "liger_config_values", "linearize"]

CARRIED_FILES = (*TOKENIZER_FILES, "generation_config.json")
DOWNLOADED_FILES = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearizeSettings:
    """How to linearize; the defaults are the Liger paper's. None stands for a default that depends on the model.

    Attributes:
        mixer: what replaces softmax attention, a key of ``config.MIXERS``.
        window_size: keys in the softmax window, the current one included.
        gate_normalizer: divisor of the log gate, for gla and gsa; default 16.
        recurrent_weight: share of the recurrence beside the window, for gla, hgrn2 and gsa; default 0.5.
        num_slots: memory slots, for gsa; default the head size.
        feature_dim: outputs of a learned feature map, for lolcats; default the head size.
        keep_softmax_every: n keeps softmax attention in layers n, 2n, 3n, ... counted from 1.
        softmax_window: keys in those layers' window; default 1,024, or what the base has if that is less.
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
        """The mixer's own fields, those given and the defaults of the rest that have one.

        Raises:
            InputError: a field was given that the mixer does not have.
        """
        own = MIXERS[self.mixer].fields
        fields = {name: LIGER_DEFAULTS[name] for name in own if name in LIGER_DEFAULTS}
        for name in {name for mixer in MIXERS.values() for name in mixer.fields}:
            value = getattr(self, name)
            if value is not None and name not in own:
                having = sorted(key for key, mixer in MIXERS.items() if name in mixer.fields)
                raise InputError(f"The mixer {self.mixer} has no {name}.", f"It is an option of {', '.join(having)}.")
            if value is not None:
                fields[name] = value
        return fields


def linearize(
    base: str, output: Path, settings: LinearizeSettings | None = None, *, overwrite: bool = False
) -> LigerConfig:
    """Write a Liger checkpoint with the weights and tokenizer of ``base``.

    Liger adds no parameters (arXiv 2503.01496, section 3): weight files are copied byte for byte. LoLCATs' feature
    maps are written beside them, as the identity.

    Args:
        base: a local Hugging Face checkpoint directory, or a hub id where there is a network.
        output: directory to create.
        settings: how to linearize.
        overwrite: replace ``output`` if it exists.

    Raises:
        CheckpointError: ``base`` is incomplete or damaged.
        UnsupportedModelError: its architecture or a setting is not supported.
        InputError: settings do not go together.
        OutputError: ``output`` exists or cannot be written.
    """
    directory = _local_directory(base)
    values = liger_config_values(read_config_json(directory), settings or LinearizeSettings())
    config = LigerConfig.from_dict(values)
    checkpoint = Checkpoint.open(directory)
    learned = _initial_tensors(config)
    checkpoint.check(config, excluded=learned)

    nbytes = sum(file.stat().st_size for file in checkpoint.files) + sum(t.nbytes for t in learned.values())
    require_space(output, nbytes)
    with new_directory(output, overwrite, inputs=(directory,)) as partial:
        write_weights(checkpoint, learned, partial)
        copy_files(CARRIED_FILES, directory, partial)
        (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    return config


def liger_config_values(base: dict[str, Any], settings: LinearizeSettings) -> dict[str, Any]:
    """The ``config.json`` of the Liger checkpoint made from a base's ``config.json``.

    Raises:
        UnsupportedModelError: no Liger model type joins this architecture and mixer.
        InputError: a setting does not fit the base or the mixer.
    """
    backbone = base.get("model_type")
    if not isinstance(backbone, str):
        raise CheckpointError(f"config.json has {backbone!r} as model_type.", "Restore the original file.")
    if backbone in MODEL_TYPES:
        raise UnsupportedModelError(f"The checkpoint is a Liger model already ({backbone}).", "Use it as it is.")
    if backbone not in BACKBONES:
        raise UnsupportedModelError(
            f"config.json has model_type {backbone!r}.", f"Supported: {', '.join(sorted(BACKBONES))}."
        )
    if settings.mixer not in MIXERS:
        raise UnsupportedModelError(f"There is no mixer {settings.mixer!r}.", f"Supported: {', '.join(MIXERS)}.")
    pairs = {(parts.backbone, parts.mixer): name for name, parts in MODEL_TYPES.items()}
    model_type = pairs[backbone, settings.mixer]
    return {
        **base,
        "model_type": model_type,
        "architectures": [MODEL_TYPES[model_type].architecture],
        "liger_format": FORMAT,
        "window_size": settings.window_size,
        **settings.mixer_fields(),
        **_softmax_fields(base, settings),
    }


def _softmax_fields(base: dict[str, Any], settings: LinearizeSettings) -> dict[str, Any]:
    """Which layers keep softmax attention, and in which window; checked against the base's own windows."""
    every, layers = settings.keep_softmax_every, Fields(base).integer("num_hidden_layers")
    if every is None:
        if settings.softmax_window is not None:
            raise InputError("softmax_window is given, but no layer keeps softmax.", "Give keep_softmax_every too.")
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
                f"{name} is {window}, and the base's own sliding window in layer {layer} is {bound} keys.",
                f"The layer was never trained to see further: choose a {name} of at most {bound}.",
            )


def _initial_tensors(config: LigerConfig) -> dict[str, Tensor]:
    """Start values of what the mixer learns, by tensor name."""
    names = learned_tensors(config)
    initial = initial_parameters(config) if names else {}
    return {name: initial[name.rsplit(".", 1)[1]].clone() for name in names}


def _local_directory(base: str) -> Path:
    path = Path(base)
    if path.exists() or base.count("/") != 1 or base.startswith((".", "/", "~")):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=DOWNLOADED_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{base} is neither a local directory nor a hub id that could be fetched ({error}).",
            "Pass the path of a Hugging Face checkpoint directory.",
        ) from error
