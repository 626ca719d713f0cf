"""Messages about missing libraries: the command that installs them, for every way to install this project."""

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

import liger_export
from liger_export import extras
from liger_export.errors import EnvironmentMismatchError
from liger_export.extras import install_command
from tests.test_imports import EXPORTER_LIBRARIES, PYPROJECT

PIP = [sys.executable, "-m", "pip", "install"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLI_LIBRARIES = {"onnx", "rich", "typer"}


def installed_from(record: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that pip recorded this source."""
    text = None if record is None else json.dumps(record)
    monkeypatch.setattr(extras, "distribution", lambda _: SimpleNamespace(read_text=lambda _: text))


def without(*libraries: str) -> str:
    """Statements after which importing a library fails."""
    return f"import sys\nsys.modules.update(dict.fromkeys({sorted(libraries)}))\n"


def command_line(*arguments: object, missing: set[str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -m liger_export`` where some libraries are not installed."""
    script = without(*missing) + (
        f"sys.argv = {['liger-export', *map(str, arguments)]}\n"
        "import runpy\nrunpy.run_module('liger_export', run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_an_installation_from_a_checkout_is_extended_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    installed_from({"url": checkout.as_uri(), "dir_info": {}}, monkeypatch)
    assert shlex.split(install_command("export")) == [*PIP, f"{checkout}[export]"]
    installed_from({"url": checkout.as_uri(), "dir_info": {"editable": True}}, monkeypatch)
    assert shlex.split(install_command("cli", "--quiet")) == [*PIP, "--quiet", "--editable", f"{checkout}[cli]"]


def test_an_installation_from_elsewhere_is_extended_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    git = {"url": "https://example.org/liger.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    installed_from(git, monkeypatch)
    source = f"git+https://example.org/liger.git@{COMMIT}"
    assert shlex.split(install_command("export")) == [*PIP, f"liger-export[export] @ {source}"]
    wheel = "https://example.org/liger_export-0.1.0-py3-none-any.whl"
    installed_from({"url": wheel, "archive_info": {}}, monkeypatch)
    assert shlex.split(install_command("export")) == [*PIP, f"liger-export[export] @ {wheel}"]


def test_without_a_record_the_checkout_or_the_name_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(None, monkeypatch)
    assert shlex.split(install_command("bench")) == [*PIP, f"{PYPROJECT.parent}[bench]"]
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)
    assert shlex.split(install_command("bench")) == [*PIP, "liger-export[bench]"]
    installed_from({"url": (tmp_path / "deleted.whl").as_uri(), "archive_info": {}}, monkeypatch)
    assert shlex.split(install_command("bench")) == [*PIP, "liger-export[bench]"]


def test_the_extras_named_in_messages_exist() -> None:
    extras_of_project = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert {"chat", "cli", "export", "bench", "tensorrt", "tensorrt-rtx"} <= set(extras_of_project)
    assert {Requirement(line).name for line in extras_of_project["cli"]} == {"liger-export", *CLI_LIBRARIES}
    assert {Requirement(line).name for line in extras_of_project["chat"]} == {"jinja2"}
    needed_by_graphs = {"onnx_ir", "onnxscript", "torch", "transformers"}
    assert needed_by_graphs <= EXPORTER_LIBRARIES - CLI_LIBRARIES


def test_run_and_inspect_need_only_the_cli_extra(package: Path) -> None:
    missing = EXPORTER_LIBRARIES - CLI_LIBRARIES
    done = command_line("run", package, "def", "-n", 3, missing=missing)
    assert (done.returncode, done.stdout[:3]) == (0, "def"), done.stderr
    done = command_line("inspect", package, missing=missing)
    assert done.returncode == 0, done.stderr
    assert "GLAAttention" in done.stdout
    done = command_line("convert", package, "-o", "out", missing=missing)
    assert done.returncode == 2
    assert install_command("export") in done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"), [(["run", "package", "def"], "cli"), (["inspect", "package"], "cli"), ([], "cli"),
                             (["serve", "package"], "serve"), (["validate", "package"], "export")],
)  # fmt: skip
def test_a_missing_command_line_is_installed_without_torch_where_possible(arguments: list[str], extra: str) -> None:
    done = command_line(*arguments, missing=EXPORTER_LIBRARIES)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: The command line needs typer, which is not installed.\nfix:   Run: {install_command(extra)}\n"
    )


def test_registering_the_model_types_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_export.modeling", None)
    with pytest.raises(EnvironmentMismatchError) as raised:
        liger_export.register()
    assert raised.value.cause == "register() needs liger_export.modeling, which is not installed."
    assert raised.value.fix == f"Run: {install_command('export')}"
    done = subprocess.run(
        [sys.executable, "-c", without(*EXPORTER_LIBRARIES) + "import liger_export\nliger_export.register()"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "EnvironmentMismatchError: register() needs " in done.stderr
    assert install_command("export") in done.stderr


def make(*arguments: str) -> str:
    """The commands that ``make`` would run."""
    command = ["make", "--dry-run", "--always-make", "--directory", str(PYPROJECT.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_can_install_pytorch_for_the_cpu_and_says_how_to_go_on() -> None:
    index = "https://download.pytorch.org/whl/cpu"
    commands = make("demo", f"TORCH_INDEX={index}")
    assert f"pip install --quiet --extra-index-url {index} --editable '.[bench,serve]'" in commands
    plain = make("demo")
    assert "--extra-index-url" not in plain
    assert f'{PYPROJECT.parent}/.venv/bin/liger-export; "source .venv/bin/activate"' in plain
    assert '"Your own model" in README.md' in plain
    assert "\n## Your own model\n" in (PYPROJECT.parent / "README.md").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_only_development_installs_what_development_needs() -> None:
    for goal in ("demo", "chat"):
        assert ".[dev]" not in make(goal)
    assert ".[dev]" in make("lint")
