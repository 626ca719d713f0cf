"""The model that ships with the repository, as a package, for the examples of apps in other languages."""

from pathlib import Path

import pytest

from liger_export.convert import convert
from liger_export.linearize import LinearizeSettings, linearize
from tests.once import made_once

EXAMPLES = Path(__file__).parents[2] / "examples"


def _make(folder: Path) -> None:
    shipped = EXAMPLES / "pycode-7m"
    linearize(shipped / "base", folder / "liger", LinearizeSettings())
    convert(folder / "liger", folder / "package", adapters=(shipped / "adapter",), lowering="fused")


@pytest.fixture(scope="session")
def shipped_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("shipped", _make, tmp_path_factory) / "package"
