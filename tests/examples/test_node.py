"""The example for Node.js gives the Python runtime's text."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from liger_export.runtime import Sampling, load
from tests.examples.conftest import EXAMPLES
from tests.once import made_once

EXAMPLE = EXAMPLES / "node"
NODE = 20
PROMPTS = [
    "def read_lines(path",
    "# größer: 文字 🙂\nclass Größe:\n",
    'import os\n\n\nclass Tree:\n    """A tree of names."""\n\n' * 12 + "    def walk(self",  # several calls
]

pytestmark = pytest.mark.slow


def missing() -> str | None:
    """Name what the example needs and this machine lacks."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"needs {program}"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < NODE:
        return f"needs Node.js {NODE}, not {version.strip()}"
    for name, wanted in json.loads((EXAMPLE / "package.json").read_text())["dependencies"].items():
        command = ["npm", "view", f"{name}@{wanted}", "version", "--fetch-retries=0", "--fetch-timeout=20000"]
        if subprocess.run(command, capture_output=True, check=False, timeout=60).returncode:
            return f"needs {name} {wanted} from the npm registry"
    return None


def install(folder: Path) -> None:
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, check=True, timeout=300)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lacks = missing()
    if lacks:
        pytest.skip(lacks)
    return made_once("node-example", install, tmp_path_factory)


def node(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["node", "generate.mjs", *map(str, arguments)]
    return subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "unicode", "long"])
def test_the_text_is_that_of_the_python_runtime(prompt: str, installed: Path, shipped_package: Path) -> None:
    session = load(shipped_package, lowering="stock")
    expected = "".join(session.generate(prompt, max_new_tokens=64, sampling=Sampling(temperature=0)))
    done = node(installed, shipped_package, prompt, 64)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected + "\n"
    assert done.stderr == ""  # nothing is logged


def test_without_a_prompt_it_says_how_it_is_called(installed: Path, shipped_package: Path) -> None:
    done = node(installed, shipped_package)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: node generate.mjs PACKAGE PROMPT" in done.stderr
