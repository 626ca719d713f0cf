from pathlib import Path

import pytest

from liger_export.linearize import LinearizeSettings, linearize

EXAMPLE = Path(__file__).parents[2] / "examples" / "pycode-7m"


@pytest.fixture(scope="session")
def shipped_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shipped") / "liger"
    linearize(str(EXAMPLE / "base"), directory, LinearizeSettings())
    return directory
