"""Kernels compiled before the package is: what the wheel carries for the default shapes, found without Triton.

    python -m liger_export.kernels.prebuilt [--targets sm_80,sm_90] [--output FOLDER]

compiles them into ``kernels/prebuilt``, which the wheel takes along where it exists. ``manifest.json`` lists the builds
by target and ``source_key``, so that kernels of other sources are never taken; each kernel's description names its
code, ``{sha256}.cubin``, once however many builds share it. The same sources and Triton give the same bytes.
"""

import argparse
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from liger_export.errors import EnvironmentMismatchError, KernelError
from liger_export.files import new_directory
from liger_export.kernels.build import TARGETS, Build, build_kernels, source_key
from liger_export.kernels.shapes import AttentionShape

__all__ = ["DEFAULT_SHAPES", "FOLDER", "find_build", "find_or_build", "prebuild"]

FOLDER = Path(__file__).parent / "prebuilt"
MANIFEST = "manifest.json"
FORMAT = 1

# Key/value heads, query heads for each, head size; activations.
_HEADS = {
    (2, 4, 32): ("float32", "float16"),  # examples/pycode-7m
    (8, 4, 64): ("float32", "float16", "bfloat16"),  # Llama-3.2-1B
    (8, 4, 128): ("float16", "bfloat16"),  # Llama-3-8B, Mistral-7B, Qwen3-8B
    (4, 7, 128): ("float16", "bfloat16"),  # Qwen2.5-7B
}
DEFAULT_SHAPES = tuple(
    AttentionShape("gla", groups, repeats, head_dim, 64, activation)
    for (groups, repeats, head_dim), activations in _HEADS.items()
    for activation in activations
)


def find_or_build(shape: AttentionShape, target: str, folder: Path = FOLDER) -> Build:
    """A graph's kernels for one GPU architecture: those that came with the package, or compiled here.

    Raises:
        KernelError: no such target, the architecture has too little shared memory, or a file is damaged.
        EnvironmentMismatchError: nothing of this shape came with the package, and Triton is not installed.
    """
    found = find_build(shape, target, folder)
    if found is not None:
        return found
    if importlib.util.find_spec("triton") is None:
        raise EnvironmentMismatchError(
            f"This installation has no compiled kernels for {target} of {_words(shape)}, and Triton, which compiles "
            "them, is not installed.",
            "Install it on Linux: pip install triton.",
        )
    with TemporaryDirectory() as cache:
        return _graph_kernels(shape, target, Path(cache))


def find_build(shape: AttentionShape, target: str, folder: Path = FOLDER) -> Build | None:
    """A build of ``prebuild``, if there is one of the present sources.

    Raises:
        KernelError: no such target, or a file is missing, damaged or of a newer format.
    """
    key = f"{target}-{source_key(shape, target, ring=False)}"
    if not (folder / MANIFEST).is_file():
        return None
    fix = "Reinstall liger-export."
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] > FORMAT:
            raise KernelError(f"{folder} is of format {manifest['format']}.", "Update liger-export.")
        if key not in manifest["builds"]:
            return None
        kernels: dict[str, dict[str, Any]] = manifest["builds"][key]
        files = {name: folder / f"{kernel['sha256']['cubin']}.cubin" for name, kernel in kernels.items()}
        cubins = {name: path.read_bytes() for name, path in files.items()}
        batch = next(iter(kernels.values()))["batch"]
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise KernelError(f"The kernels in {folder} are incomplete ({error}).", fix) from error
    for name, cubin in cubins.items():
        if hashlib.sha256(cubin).hexdigest() != files[name].stem:
            raise KernelError(f"{name} in {folder} is damaged.", fix)
    return Build(folder, shape, target, batch, kernels, cubins)


def prebuild(
    folder: Path, shapes: Sequence[AttentionShape] = DEFAULT_SHAPES, targets: Sequence[str] = tuple(TARGETS)
) -> None:
    """Compile kernels for every shape and target, on all cores, into a folder that replaces any of an earlier call.

    Raises as ``build_kernels``.
    """
    pairs = [(shape, target) for target in targets for shape in shapes]
    builds: dict[str, dict[str, dict[str, Any]]] = {}
    with new_directory(folder, overwrite=folder.exists()) as partial_folder, TemporaryDirectory() as cache:
        with ProcessPoolExecutor() as processes:
            made = list(processes.map(partial(_graph_kernels, cache=Path(cache)), *zip(*pairs, strict=True)))
        for (shape, target), build in zip(pairs, made, strict=True):
            for cubin in build.cubins.values():
                (partial_folder / f"{hashlib.sha256(cubin).hexdigest()}.cubin").write_bytes(cubin)
            described = {name: _without_ptx(kernel) for name, kernel in build.kernels.items()}
            builds[f"{target}-{source_key(shape, target, ring=False)}"] = described
        manifest = {"format": FORMAT, "shapes": [asdict(shape) for shape in shapes], "builds": builds}
        (partial_folder / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")) + "\n")


def _graph_kernels(shape: AttentionShape, target: str, cache: Path) -> Build:
    """As a fused graph launches them: a window that moves to other buffers."""
    return build_kernels(shape, target, cache, ring=False)


def _without_ptx(kernel: dict[str, Any]) -> dict[str, Any]:
    return {**kernel, "sha256": {"cubin": kernel["sha256"]["cubin"]}}


def _words(shape: AttentionShape) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(shape).items())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compile the kernels that the wheel carries.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument("--targets", default=",".join(TARGETS), help="GPU architectures")
    arguments = parser.parse_args()
    prebuild(arguments.output, targets=arguments.targets.split(","))


if __name__ == "__main__":
    main()
