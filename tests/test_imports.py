"""The architecture, checked by reading imports from the source.

The package has two wings. The left wing, the runtime, is what an app installs: it needs only the project's
dependencies. The right wing, the exporter, needs the ``export`` extra (PyTorch, transformers, onnx and others).
"""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import liger_export

ROOT = Path(liger_export.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
RUNTIME = [
    *("errors", "extras", "partials", "files", "page_cache", "progress", "ort"),
    *("config", "precision", "state", "package", "runtime"),
]
EXPORTER = [
    *("publishing", "distributed", "data", "metrics", "ops", "onnx_functions", "kernels", "plugins"),
    *("checkpoint", "modeling", "linearize", "finetune", "quantize", "export", "prefix", "convert", "inspection"),
    *("parity", "validate", "engine", "evaluate", "bench", "serve", "commands", "cli", "__main__"),
]
LAYERS = [*RUNTIME, *EXPORTER]

# Modules of the left wing that need an extra; the others import them inside functions.
NEED_EXTRAS = {"liger_export.runtime.template_sandbox": "chat"}

EXPORTER_LIBRARIES = {
    *("accelerate", "gguf", "jinja2", "onnx", "onnx_ir", "onnxscript", "peft", "psutil", "rich", "safetensors"),
    *("torch", "transformers", "triton", "typer"),
}


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def modules() -> dict[str, Path]:
    """Map each module of the package, by dotted name, to its file."""
    found = {}
    folders = [ROOT, ROOT / "kernels", ROOT / "plugins"]  # links in a checkout, which rglob does not follow
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(("liger_export", *parts)).removesuffix(".__init__")] = path
    return found


def runtime_modules() -> dict[str, Path]:
    """Map each module of the left wing to its file."""
    return {module: path for module, path in modules().items() if layer_of(module) in RUNTIME}


def imported(path: Path) -> set[str]:
    """Names of modules that a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def dependencies(extra: str | None = None) -> set[str]:
    """Names of the distributions that the project, or one of its extras with the extras it includes, requires."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    listed = project["optional-dependencies"][extra] if extra else project["dependencies"]
    required = [Requirement(line) for line in listed]
    included = (dependencies(name) for each in required if each.name == "liger-export" for name in each.extras)
    return {each.name for each in required if each.name != "liger-export"}.union(*included)


def run(script: str) -> str:
    """Standard output of a script in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that are loaded in a fresh interpreter after a statement."""
    return set(run(f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})").split())


def test_every_module_belongs_to_a_layer() -> None:
    layers = {layer_of(module) for module in modules()} - {""}
    assert layers <= set(LAYERS)
    assert {"config", "state", "ops", "kernels", "checkpoint", "runtime", "validate", "cli"} <= layers


def test_a_layer_imports_only_layers_left_of_it() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules().items()
        for name in imported(path)
        if name.split(".")[0] == "liger_export" and layer_of(module) and layer_of(name)
        if LAYERS.index(layer_of(name)) > LAYERS.index(layer_of(module))
    ]
    assert wrong == []


def test_the_left_wing_imports_only_the_projects_dependencies() -> None:
    assert dependencies("export") <= EXPORTER_LIBRARIES
    assert dependencies().isdisjoint(EXPORTER_LIBRARIES)
    allowed = {"liger_export", *sys.stdlib_module_names, *dependencies()}
    extras = {module: dependencies(extra) for module, extra in NEED_EXTRAS.items()}
    wrong = [
        f"{module} imports {name}"
        for module, path in runtime_modules().items()
        for name in imported(path)
        if name.split(".")[0] not in allowed | extras.get(module, set())
    ]
    assert wrong == []


def test_the_left_wing_imports_where_the_exporters_libraries_are_not_installed() -> None:
    names = ["liger_export", *sorted(runtime_modules().keys() - NEED_EXTRAS)]
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(EXPORTER_LIBRARIES)}))\n"  # None: importing it fails
        f"for name in {names}: importlib.import_module(name)\n"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'liger_export'))"
    )
    loaded = run(script).split()
    assert set(names) <= set(loaded)
    assert {layer_of(name) for name in loaded} <= {"", *RUNTIME}


@pytest.mark.parametrize("module", ["liger_export", "liger_export.runtime", "liger_export.package"])
def test_the_runtime_loads_none_of_the_exporters_libraries(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert {"numpy", "onnxruntime", "tokenizers"} <= loaded
    assert loaded & EXPORTER_LIBRARIES == set()


def test_the_run_command_loads_neither_torch_nor_transformers(package: Path) -> None:
    statement = (
        "import sys\nfrom liger_export.cli import main\n"
        f"sys.argv = ['liger-export', 'run', {str(package)!r}, 'def', '-n', '3']\n"
        "try: main()\nexcept SystemExit as stopped: assert not stopped.code"
    )
    assert loaded_after(statement) & {"torch", "transformers", "peft", "onnx"} == set()


def test_the_server_loads_neither_torch_nor_transformers() -> None:
    loaded = loaded_after("import liger_export.serve\nimport liger_export.commands.serve")
    assert "starlette" in loaded
    assert loaded & {"torch", "transformers", "peft", "onnx", "safetensors"} == set()
