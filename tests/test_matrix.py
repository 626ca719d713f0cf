"""Convert every mixer on every backbone, and tied, biased and scaled backbones, and validate against PyTorch."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.linearize import LinearizeSettings
from liger_export.package import read_manifest
from liger_export.parity.report import ParityReport
from liger_export.state import bytes_per_session
from liger_export.validate import ValidationSettings, validate
from tests.cells import slow_except
from tests.tiny import Shape, config_of, write_liger

# Sums that never decay lose digits in float32, more so with few features. LoLCATs is validated at the head size and
# window of real models.
SHAPES = {mixer: Shape(window=8) for mixer in MIXERS} | {"lolcats": Shape(2, 1, head_dim=64, window=64)}
SCALE = dict.fromkeys(MIXERS, 0.3) | {"lolcats": 0.05}

# At these head sizes it keeps some wavelengths, blends some and scales some.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 64}),
    "mistral-tied": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-biased": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}
# Every mixer on every backbone. Of the other variants, only angles and biases can affect a mixer.
CELLS = [
    *product(MIXERS, ("llama", "mistral", "qwen2", "qwen3")),
    *product(("gla", "lolcats"), ("llama-llama3-rope", "qwen3-tied-biased")),
    ("gsa", "llama-biased"),
    ("hgrn2", "llama-tied"),
    ("gsa", "mistral-tied"),
    ("hgrn2", "qwen2-tied"),
]
FAST = [("gla", "llama"), ("hgrn2", "mistral")]


def assert_valid(checkpoint: Path, package: Path, text: Path) -> ParityReport:
    report = validate(package, checkpoint, ValidationSettings(text=text, max_tokens=4096, memory_tokens=128))
    missed = [f"{check.name} {check.value:.2g} {check.detail}" for check in report.checks if not check.passed]
    assert missed == []
    return report


@pytest.mark.parametrize(("mixer", "variant"), slow_except(FAST, CELLS))
def test_package_validates_within_the_float32_tolerances(
    mixer: str, variant: str, tmp_path: Path, random_text: Path
) -> None:
    backbone, overrides = VARIANTS[variant]
    settings = LinearizeSettings(mixer=mixer, num_slots=4 if mixer == "gsa" else None)
    values: dict[str, Any] = {"num_hidden_layers": 1, "initializer_range": SCALE[mixer], **overrides}
    checkpoint = write_liger(tmp_path / "liger", SHAPES[mixer], backbone=backbone, settings=settings, **values)
    convert(checkpoint, tmp_path / "package")
    assert_valid(checkpoint, tmp_path / "package", random_text)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", slow_except(["gla"], MIXERS))
def test_hybrid_validates_and_its_manifest_lists_its_state(mixer: str, tmp_path: Path, random_text: Path) -> None:
    settings = LinearizeSettings(mixer=mixer, keep_softmax_every=2, softmax_window=96)
    checkpoint = write_liger(
        tmp_path / "liger", SHAPES[mixer], settings=settings, num_hidden_layers=2, initializer_range=SCALE[mixer]
    )
    convert(checkpoint, tmp_path / "package")
    report = assert_valid(checkpoint, tmp_path / "package", random_text)
    edges = {check.detail for check in report.checks if check.name.startswith("single steps")}
    assert {f"at position {edge}" for edge in (95, 96, 97, 192, 960)} < edges
    manifest, shape = read_manifest(tmp_path / "package"), SHAPES[mixer]
    kept = [entry for entry in manifest.state if entry.layer == 1]
    assert [(entry.name, entry.shape) for entry in kept] == [
        (name, (shape.key_value_heads, 96, shape.head_dim)) for name in ("key", "value")
    ]
    assert config_of(checkpoint).layer_mixer(1) == "softmax"
    assert bytes_per_session(manifest.state) == sum(entry.nbytes for entry in manifest.state)


@pytest.mark.slow
@pytest.mark.parametrize("slots", slow_except([1], [1, 8]))
def test_slots_may_be_as_few_as_one_and_as_many_as_the_head_size(slots: int, tmp_path: Path, random_text: Path) -> None:
    settings = LinearizeSettings(mixer="gsa", num_slots=slots)
    checkpoint = write_liger(tmp_path / "liger", settings=settings, num_hidden_layers=1)
    convert(checkpoint, tmp_path / "package")
    assert_valid(checkpoint, tmp_path / "package", random_text)
