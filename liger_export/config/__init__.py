"""A checkpoint's ``config.json``, read strictly and without importing torch."""

from liger_export.config.backbones import BACKBONES, MODEL_TYPES, Backbone, ModelType, base_window
from liger_export.config.fields import Fields, read_config_json, read_end_ids, with_end_tokens, without_machine_path
from liger_export.config.mixers import LAYER_MIXERS, MIXERS, SOFTMAX, Mixer
from liger_export.config.model import FORMAT, LIGER_DEFAULTS, LigerConfig, check_supported
from liger_export.config.rope import TURN, RopeConfig, inverse_frequencies, read_rope, rotary_turns

__all__ = [
    "BACKBONES",
    "FORMAT",
    "LAYER_MIXERS",
    "LIGER_DEFAULTS",
    "MIXERS",
    "MODEL_TYPES",
    "SOFTMAX",
    "TURN",
    "Backbone",
    "Fields",
    "LigerConfig",
    "Mixer",
    "ModelType",
    "RopeConfig",
    "base_window",
    "check_supported",
    "inverse_frequencies",
    "read_config_json",
    "read_end_ids",
    "read_rope",
    "rotary_turns",
    "with_end_tokens",
    "without_machine_path",
]
