"""Convert every mixer on every backbone, and tied, biased and scaled backbones, and validate against PyTorch."""

from itertools import product
from pathlib import Path

import pytest

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.linearize import LinearizeSettings
from liger_export.package import read_manifest
from liger_export.parity.report import ParityReport
from liger_export.state import bytes_per_session
from liger_export.validate import ValidationSettings, validate
from tests.backbones import SOFTMAX_WINDOW, write_hybrid, write_variant
from tests.cells import slow_except
from tests.tiny import config_of, write_liger

# Every mixer on every backbone. Of the other variants, only angles and biases can affect a mixer.
CELLS = [
    *product(MIXERS, ("llama", "mistral", "qwen2", "qwen3")),
    *product(("gla", "lolcats"), ("llama-llama3-rope", "qwen3-tied-biased")),
    ("gsa", "llama-biased"),
    ("hgrn2", "llama-tied"),
    ("gsa", "mistral-tied"),
    ("hgrn2", "qwen2-tied"),
]
FAST = [("gla", "llama")]


def assert_valid(checkpoint: Path, package: Path, text: Path) -> ParityReport:
    report = validate(package, checkpoint, ValidationSettings(text=text, max_tokens=4096, memory_tokens=128))
    missed = [f"{check.name} {check.value:.2g} {check.detail}" for check in report.checks if not check.passed]
    assert missed == []
    return report


@pytest.mark.parametrize(("mixer", "variant"), slow_except(FAST, CELLS))
def test_package_validates_within_the_float32_tolerances(
    mixer: str, variant: str, tmp_path: Path, random_text: Path
) -> None:
    checkpoint = write_variant(tmp_path / "liger", mixer, variant)
    convert(checkpoint, tmp_path / "package")
    assert_valid(checkpoint, tmp_path / "package", random_text)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", slow_except(["gla"], MIXERS))
def test_hybrid_validates_and_its_manifest_lists_its_state(mixer: str, tmp_path: Path, random_text: Path) -> None:
    checkpoint = write_hybrid(tmp_path / "liger", mixer)
    convert(checkpoint, tmp_path / "package")
    report = assert_valid(checkpoint, tmp_path / "package", random_text)
    edges = {check.detail for check in report.checks if check.name.startswith("single steps")}
    assert {f"at position {edge}" for edge in (39, 40, 41, 80, 400)} < edges
    manifest, config = read_manifest(tmp_path / "package"), config_of(checkpoint)
    kept = [entry for entry in manifest.state if entry.layer == 1]
    assert [(entry.name, entry.shape) for entry in kept] == [
        (name, (config.num_key_value_heads, SOFTMAX_WINDOW, config.head_dim)) for name in ("key", "value")
    ]
    assert config.layer_mixer(1) == "softmax"
    assert bytes_per_session(manifest.state) == sum(entry.nbytes for entry in manifest.state)


@pytest.mark.slow
@pytest.mark.parametrize("slots", slow_except([1], [1, 8]))
def test_slots_may_be_as_few_as_one_and_as_many_as_the_head_size(slots: int, tmp_path: Path, random_text: Path) -> None:
    settings = LinearizeSettings(mixer="gsa", num_slots=slots)
    checkpoint = write_liger(tmp_path / "liger", settings=settings, num_hidden_layers=1)
    convert(checkpoint, tmp_path / "package")
    assert_valid(checkpoint, tmp_path / "package", random_text)
