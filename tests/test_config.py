import math
from itertools import product

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from liger_export.config import (
    BACKBONES,
    MIXERS,
    MODEL_TYPES,
    LigerConfig,
    RopeConfig,
    base_window,
    inverse_frequencies,
)
from liger_export.errors import CheckpointError, LigerExportError, UnsupportedModelError
from tests.tiny import Shape

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def values(**changes: object) -> dict[str, object]:
    return {**Shape().base_values, "model_type": "liger_gla", "liger_format": 1, "rms_norm_eps": 1e-5, **changes}


def test_missing_fields_take_the_backbones_defaults() -> None:
    config = LigerConfig.from_dict(values(num_key_value_heads=None, head_dim=None, hidden_size=48))
    assert (config.num_key_value_heads, config.head_dim, config.window_size) == (4, 12, 64)
    assert config.eos_token_ids == (0,)


def test_rope_parameters_of_transformers_4_and_5_are_equivalent() -> None:
    old = LigerConfig.from_dict(values(rope_theta=5e5, rope_scaling=LLAMA3_ROPE))
    new = LigerConfig.from_dict(values(rope_parameters={**LLAMA3_ROPE, "rope_theta": 5e5}))
    assert old.rope == new.rope == RopeConfig(5e5, "llama3", 32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}, LLAMA3_ROPE])
def test_inverse_frequencies_equal_transformers(rope: dict[str, object]) -> None:
    base = LlamaConfig(head_dim=64, hidden_size=128, num_attention_heads=2, rope_parameters={**rope, "rope_theta": 5e5})
    config = LigerConfig.from_dict({**base.to_dict(), "model_type": "liger_gla", "liger_format": 1})
    measured = inverse_frequencies(config.rope, 64)
    if rope["rope_type"] == "default":
        expected = torch.tensor([5e5 ** -(i / 64) for i in range(0, 64, 2)])
    else:
        expected, scaling = ROPE_INIT_FUNCTIONS[str(rope["rope_type"])](base, torch.device("cpu"))
        assert scaling == 1
    torch.testing.assert_close(torch.from_numpy(measured), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_type": "llama"}, UnsupportedModelError, "linearize"),
        ({"model_type": "gpt2"}, UnsupportedModelError, "liger_gla"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "gelu"),
        ({"quantization_config": {"bits": 4}}, UnsupportedModelError, "unquantized"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, UnsupportedModelError, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, CheckpointError, "low_freq_factor"),
        ({"num_attention_heads": 3}, UnsupportedModelError, "multiple"),
        ({"head_dim": 7}, UnsupportedModelError, "even"),
        ({"window_size": 0}, UnsupportedModelError, "window_size"),
        ({"vocab_size": "many"}, CheckpointError, "vocab_size"),
        ({"model_type": ["llama"]}, UnsupportedModelError, "is not a Liger model"),
        ({"rms_norm_eps": -1.0}, CheckpointError, "rms_norm_eps"),
        ({"rope_theta": 0.0}, CheckpointError, "rope_theta"),
        ({"rope_parameters": [1]}, CheckpointError, "rope parameters"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": LLAMA3_ROPE}, CheckpointError, "both"),
        ({"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, CheckpointError, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModelError, "partial_rotary_factor is 0.5"),
        ({"eos_token_id": "end"}, CheckpointError, "token id"),
        ({"hidden_size": None}, CheckpointError, "hidden_size"),
        ({"num_hidden_layers": True}, CheckpointError, "num_hidden_layers"),
        ({"model_type": "liger_gsa", "num_slots": 3}, UnsupportedModelError, "does not divide head_dim"),
        ({"recurrent_weight": 1.5}, UnsupportedModelError, "between 0 and 1"),
        ({"softmax_layers": [2]}, UnsupportedModelError, "from 0 to 1"),
        ({"softmax_layers": [1, 0]}, UnsupportedModelError, "in ascending order"),
        ({"softmax_layers": "all"}, CheckpointError, "softmax_layers"),
        ({"softmax_layers": [0.5]}, CheckpointError, "list of integers"),
        ({"liger_format": None}, CheckpointError, "open_liger"),
        ({"liger_format": 2}, UnsupportedModelError, "Upgrade"),
    ],
)
def test_unsupported_and_invalid_fields_are_named(
    changes: dict[str, object], error: type[LigerExportError], words: str
) -> None:
    with pytest.raises(error, match=words):
        LigerConfig.from_dict(values(**changes))


def test_llama3_scaling_divides_the_longest_wavelength_and_keeps_the_shortest() -> None:
    scaled = inverse_frequencies(RopeConfig(5e5, "llama3", 32.0, 1.0, 4.0, 8192), 64)
    plain = inverse_frequencies(RopeConfig(5e5), 64)
    assert scaled[0] == plain[0]
    assert math.isclose(scaled[-1], plain[-1] / 32, rel_tol=1e-6)


def test_every_backbone_and_mixer_have_one_model_type() -> None:
    pairs = {(parts.backbone, parts.mixer) for parts in MODEL_TYPES.values()}
    assert pairs == set(product(BACKBONES, MIXERS))
    assert len(MODEL_TYPES) == len(pairs) == 16
    paper = {
        "liger_gla",
        "liger_gsa",
        "liger_hgrn2",
        "liger_mistral_gla",
        "liger_qwen2_gla",
        "liger_qwen3_gla",
        "lolcats",
    }
    assert paper <= set(MODEL_TYPES)


@pytest.mark.parametrize(
    ("backbone", "fields", "expected"),
    [
        ("llama", {}, (False, False, False, False)),
        ("llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True, False)),
        ("mistral", {"attention_bias": True}, (False, False, False, False)),
        ("qwen2", {}, (True, False, False, False)),
        ("qwen3", {}, (False, False, False, True)),
        ("qwen3", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_backbones_differ_in_biases_and_norms(
    backbone: str, fields: dict[str, bool], expected: tuple[bool, bool, bool, bool]
) -> None:
    name = "liger_gla" if backbone == "llama" else f"liger_{backbone}_gla"
    config = LigerConfig.from_dict(values(model_type=name, **fields))
    assert (config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm) == expected


@pytest.mark.parametrize(
    ("backbone", "fields", "windows"),
    [
        ("llama", {"sliding_window": 8}, [None, None]),
        ("mistral", {}, [4096, 4096]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("mistral", {"sliding_window": 16}, [16, 16]),
        ("qwen2", {"sliding_window": 16}, [None, None]),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, [None, 16]),
        (
            "qwen3",
            {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            [16, None],
        ),
    ],
)
def test_the_sliding_window_of_a_base_is_read_per_layer(
    backbone: str, fields: dict[str, object], windows: list[int | None]
) -> None:
    assert [base_window(backbone, values(**fields), layer) for layer in range(2)] == windows
