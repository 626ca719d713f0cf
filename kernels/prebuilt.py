"""Prebuilt kernels: a wheel carries the compiled kernels of the default shapes, which are usable without Triton.

    python -m liger_export.kernels.prebuilt [--targets sm_80,sm_90] [--output FOLDER]

compiles them into ``kernels/prebuilt``; a wheel includes that folder if it exists. ``manifest.json`` describes the
kernels by target and ``plan_key``, so that kernels of other sources are never used. Each description names its code,
``{sha256}.cubin``, which kernels with the same code share. The same sources and Triton give the same bytes.
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
from liger_export.kernels.build import Build, build_kernels, grid_of, plan_key, plans_of
from liger_export.kernels.compiler import compiles_batched_steps
from liger_export.kernels.plans import Plan
from liger_export.kernels.shapes import AttentionShape, LinearShape
from liger_export.kernels.targets import TARGETS, require_target
from liger_export.publishing import new_directory

__all__ = ["DEFAULTS", "FOLDER", "find_build", "find_or_build", "prebuild"]

FOLDER = Path(__file__).parent / "prebuilt"
MANIFEST = "manifest.json"
FORMAT = 1

_WEIGHTS = ((16, 0), (4, 32), (4, 128), (8, 32))  # bits and block size


def _model(
    num_key_value_heads: int,
    num_queries_per_kv: int,
    head_dim: int,
    hidden: int,
    intermediate: int,
    activations: Sequence[str],
) -> list[tuple[AttentionShape, tuple[LinearShape, ...]]]:
    """Return the shapes of a model's layers for each activation dtype.

    Rows of a linear layer only affect its kernel's grid, so one vocabulary size serves all models of this width.
    """
    linears = [
        layer
        for bits, block_size in _WEIGHTS
        for layer in (
            LinearShape(hidden, hidden, bits, block_size),
            LinearShape(intermediate, hidden, bits, block_size, is_gated=True),
            LinearShape(hidden, intermediate, bits, block_size),
            LinearShape(128256, hidden, bits, block_size, to_float=True),
        )
    ]
    sizes = (num_key_value_heads, num_queries_per_kv, head_dim, 64)
    return [(AttentionShape("gla", *sizes, activation), tuple(linears)) for activation in activations]


HALVES = ("float16", "bfloat16")
DEFAULTS = (
    *_model(2, 4, 32, 256, 768, ("float32", "float16")),  # examples/pycode-7m
    *_model(8, 4, 64, 2048, 8192, ("float32", *HALVES)),  # Llama-3.2-1B
    *_model(8, 4, 128, 4096, 14336, HALVES),  # Llama-3-8B, Mistral-7B, Qwen3-8B
    *_model(4, 7, 128, 3584, 18944, HALVES),  # Qwen2.5-7B
)


def find_or_build(
    shape: AttentionShape, target: str, linears: tuple[LinearShape, ...] = (), folder: Path = FOLDER
) -> Build:
    """Load a graph's kernels for one GPU architecture from the prebuilt ones, or else compile them.

    Raises:
        KernelError: unknown target, the architecture has too little shared memory, or a file is damaged.
        EnvironmentMismatchError: there are no prebuilt kernels of this shape, and Triton is not installed.
    """
    found = find_build(shape, target, linears, folder)
    if found is not None:
        return found
    if importlib.util.find_spec("triton") is None:
        raise EnvironmentMismatchError(
            f"This installation has no compiled kernels for {target} of {_text(shape)}, and Triton is not installed to "
            "compile them.",
            "Install it on Linux: pip install triton.",
        )
    with TemporaryDirectory() as cache:
        return _graph_kernels(shape, target, linears, Path(cache))


def find_build(
    shape: AttentionShape, target: str, linears: tuple[LinearShape, ...] = (), folder: Path = FOLDER
) -> Build | None:
    """Load prebuilt kernels. Returns None unless all kernels of a graph are there, built from the present sources.

    Raises:
        KernelError: unknown target, or a file is missing, damaged or of a newer format.
    """
    require_target(target)
    if not (folder / MANIFEST).is_file():
        return None
    plans = plans_of(shape, ring=False, linears=linears)
    keys = {plan.name: _key(plan, shape, target) for plan in plans}
    fix = "Reinstall liger-export."
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] > FORMAT:
            raise KernelError(f"{folder} has the newer format {manifest['format']}.", "Update liger-export.")
        if not set(keys.values()) <= manifest["kernels"].keys():
            return None
        kernels: dict[str, dict[str, Any]] = {
            plan.name: manifest["kernels"][keys[plan.name]] | {"grid": grid_of(plan)} for plan in plans
        }
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
    folder: Path,
    models: Sequence[tuple[AttentionShape, tuple[LinearShape, ...]]] = DEFAULTS,
    targets: Sequence[str] = tuple(TARGETS),
) -> None:
    """Compile the kernels of models for targets, on all cores. Replaces a folder that it wrote before.

    Raises:
        KernelError: as ``build_kernels``.
        EnvironmentMismatchError: as ``build_kernels``, or Triton is older than 3.9.
    """
    if not compiles_batched_steps():
        raise EnvironmentMismatchError(
            "Prebuilt kernels need Triton 3.9 or newer.", "Update it: pip install --upgrade 'triton>=3.9'."
        )
    wanted = [(shape, target, linears) for target in targets for shape, linears in models]
    listed: dict[str, dict[str, Any]] = {}
    with new_directory(folder, overwrite=True) as partial_folder, TemporaryDirectory() as cache:
        with ProcessPoolExecutor() as processes:
            make = partial(_graph_kernels, cache=Path(cache))
            made = list(processes.map(make, *zip(*wanted, strict=True)))
        for (shape, target, linears), build in zip(wanted, made, strict=True):
            for cubin in build.cubins.values():
                (partial_folder / f"{hashlib.sha256(cubin).hexdigest()}.cubin").write_bytes(cubin)
            for plan in plans_of(shape, ring=False, linears=linears):
                listed[_key(plan, shape, target)] = _without_ptx(build.kernels[plan.name])
        manifest = {"format": FORMAT, "shapes": [shape.description for shape, _ in models], "kernels": listed}
        (partial_folder / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")) + "\n")


def _key(plan: Plan, shape: AttentionShape, target: str) -> str:
    return f"{target}-{plan_key(plan, shape, target)}"


def _graph_kernels(shape: AttentionShape, target: str, linears: tuple[LinearShape, ...], cache: Path) -> Build:
    """Build the kernels as the CUDA graph uses them: the step kernel writes the next window to other buffers."""
    return build_kernels(shape, target, cache, ring=False, linears=linears)


def _without_ptx(kernel: dict[str, Any]) -> dict[str, Any]:
    return {**kernel, "sha256": {"cubin": kernel["sha256"]["cubin"]}}


def _text(shape: AttentionShape) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(shape).items())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compile the kernels that a wheel carries.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument("--targets", default=",".join(TARGETS), help="GPU architectures")
    arguments = parser.parse_args()
    prebuild(arguments.output, targets=arguments.targets.split(","))


if __name__ == "__main__":
    main()
