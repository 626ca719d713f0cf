"""The architecture, read from the source: which layer imports which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import liger_export

ROOT = Path(liger_export.__file__).parent
# RUNTIME runs without PyTorch.
RUNTIME = ["errors", "files", "progress", "ort", "config", "precision", "state", "package", "runtime"]
EXPORTER = [
    *("distributed", "data", "metrics", "ops", "onnx_functions", "kernels", "plugins", "checkpoint", "modeling"),
    *("linearize", "finetune", "quantize", "export", "convert", "inspection", "parity", "validate", "engine"),
    *("evaluate", "bench", "serve", "commands", "cli", "__main__"),
]
LAYERS = [*RUNTIME, *EXPORTER]


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name."""
    found = {}
    folders = [ROOT, ROOT / "kernels", ROOT / "plugins"]  # the last two are links in a checkout, which rglob passes by
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(("liger_export", *parts)).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name.split(".")[0] == "liger_export"}


def test_every_module_belongs_to_a_layer() -> None:
    layers = {layer_of(module) for module in modules()} - {""}
    assert layers <= set(LAYERS)
    assert {"config", "state", "ops", "kernels", "checkpoint", "runtime", "validate", "cli"} <= layers


def test_a_layer_imports_only_what_stands_left_of_it() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules().items()
        for name in imported(path)
        if layer_of(module) and layer_of(name) and LAYERS.index(layer_of(name)) > LAYERS.index(layer_of(module))
    ]
    assert wrong == []


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


EXPORTER_LIBRARIES = {"torch", "transformers", "peft", "onnx", "onnxscript", "onnx_ir", "safetensors", "typer", "rich"}


@pytest.mark.parametrize("module", ["liger_export", "liger_export.runtime", "liger_export.package"])
def test_the_runtime_needs_none_of_the_exporters_libraries(module: str) -> None:
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
