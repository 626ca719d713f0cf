"""Packages that several engine tests build from, each converted once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from liger_export.convert import convert
from liger_export.linearize import LinearizeSettings
from liger_export.precision import Precision
from tests.tiny import Shape, write_liger

WIDE = Shape(4, 2, head_dim=32, window=16)  # a size that the step kernel has a plugin for
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3}

Hybrid = Callable[..., Path]  # called with mixer, shape and precision; returns a package directory


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Hybrid:
    """Tiny hybrid packages: two layers of a mixer around one that keeps softmax. Checkpoint ``liger`` is a sibling."""
    packages: dict[str, Path] = {}

    def package(mixer: str, shape: Shape = WIDE, precision: Precision | None = None) -> Path:
        key = f"{mixer} {shape} {precision}"
        if key not in packages:
            folder = tmp_path_factory.mktemp(mixer)
            settings = LinearizeSettings(
                mixer=mixer, num_slots=4 if mixer == "gsa" else None, keep_softmax_every=2, softmax_window=20
            )
            write_liger(folder / "liger", shape, backbone="qwen3", settings=settings, **SIZES)
            convert(folder / "liger", folder / "package", precision=precision)
            packages[key] = folder / "package"
        return packages[key]

    return package
