"""Ahead-of-time builds: all kernels of one layer shape for one GPU architecture, compiled on any machine.

A build is a folder with ``{kernel}.cubin``, ``{kernel}.ptx`` and ``{kernel}.json`` (how to launch it) for each kernel.
The same sources, shape, target and Triton version give the same bytes. The folder's name is a hash of all of these, so
that each build is made once.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from liger_export.errors import KernelError, OutputError
from liger_export.kernels.compiler import KERNEL_MODULES, compile_plan, compiles_batched_steps, import_triton
from liger_export.kernels.plans import (
    Plan,
    batched_step_plan,
    chunkwise_plans,
    dequantize_plan,
    linear_plan,
    pointwise_plans,
    step_plan,
)
from liger_export.kernels.shapes import AttentionShape, LinearShape
from liger_export.kernels.targets import require_target
from liger_export.publishing import new_directory

__all__ = ["Build", "build_kernels", "grid_of", "load_build", "plan_key", "plans_of"]

FORMAT = 4
# The sources that decide a kernel's code.
MODULES = ("features", "dependent_launch", "plans", "shapes", *KERNEL_MODULES, "arguments", "targets", "compiler")


@dataclass(frozen=True)
class Build:
    """Compiled kernels of one layer shape for one GPU architecture.

    Attributes:
        directory: the build's folder.
        shape: the shape that the kernels compute.
        target: a key of ``TARGETS``.
        batch: batch size that the step kernel's grid is tuned for; other sizes run too.
        kernels: contents of each kernel's JSON file by plan name, attention kernels first, in execution order.
        cubins: machine code by plan name.
    """

    directory: Path
    shape: AttentionShape
    target: str
    batch: int
    kernels: dict[str, dict[str, Any]]
    cubins: dict[str, bytes]


def build_kernels(
    shape: AttentionShape,
    target: str,
    cache: Path,
    *,
    batch: int = 1,
    ring: bool = True,
    linears: Iterable[LinearShape] = (),
) -> Build:
    """Compile all kernels of a layer, or load them from the cache. Needs no GPU.

    Args:
        shape: shape of the layer's attention.
        target: a key of ``TARGETS``.
        cache: folder of builds.
        batch: batch size that the step kernel is tuned for.
        ring: the step kernel updates its window in place, as a ring. If False, it writes the next window oldest first.
        linears: linear layers to build kernels for.

    Raises:
        KernelError: unknown target, or the architecture has too little shared memory for this shape.
        EnvironmentMismatchError: Triton is not installed, or runs as an interpreter.
    """
    require_target(target)
    plans = plans_of(shape, batch=batch, ring=ring, linears=linears)
    if not compiles_batched_steps():
        plans = [plan for plan in plans if plan.kernel != "batched_step_kernel"]
    keys = [plan_key(plan, shape, target) for plan in plans]
    made = [batch, keys, [asdict(plan) for plan in plans], import_triton().__version__]
    directory = cache / f"{target}-{_digest(made)}"
    if not directory.exists():
        try:
            with new_directory(directory) as folder:
                for order, plan in enumerate(plans):
                    _write(folder, plan, order, shape, target, batch)
        except OutputError:
            if not directory.exists():  # otherwise another process has written the same build meanwhile
                raise
    return load_build(directory)


def plans_of(
    shape: AttentionShape, *, batch: int = 1, ring: bool = True, linears: Iterable[LinearShape] = ()
) -> list[Plan]:
    """Return the plans that ``build_kernels`` compiles for a layer, attention kernels first, in execution order."""
    attention = (
        step_plan(shape, batch, ring=ring),
        batched_step_plan(shape, ring=ring),
        *chunkwise_plans(shape).values(),
    )
    plans = {plan.name: plan for plan in (*attention, *pointwise_plans().values()) if plan is not None}
    for linear in linears:
        needed = [linear_plan(linear), *([dequantize_plan(linear.bits, linear.block_size)] if linear.bits < 16 else [])]
        plans |= {plan.name: plan for plan in needed}
    return list(plans.values())


def plan_key(plan: Plan, shape: AttentionShape, target: str) -> str:
    """Hash everything that decides a kernel's code, except Triton's version. Needs no Triton.

    Plans that differ only in name and grid have the same code.
    """
    code = {name: value for name, value in asdict(plan).items() if name not in ("grid", "variant")}
    return _digest([FORMAT, target, asdict(shape), code, _source_hashes(MODULES)])


def grid_of(plan: Plan) -> list[dict[str, Any]]:
    """Return a plan's grid as a build describes it."""
    return [asdict(axis) for axis in plan.grid]


@cache
def _source_hashes(modules: tuple[str, ...]) -> dict[str, str]:
    here = Path(__file__).parent
    return {name: _sha256((here / f"{name}.py").read_bytes()) for name in modules}


def load_build(directory: Path) -> Build:
    """Read a build and check the hash of every file.

    Raises:
        KernelError: a file is missing or damaged, or its format is newer.
    """
    kernels, cubins = {}, {}
    try:
        for path in sorted(directory.glob("*.json"), key=lambda path: json.loads(path.read_text())["order"]):
            description = json.loads(path.read_text())
            for kind, expected in description["sha256"].items():
                content = (directory / f"{path.stem}.{kind}").read_bytes()
                if _sha256(content) != expected:
                    raise KernelError(f"{directory / path.stem}.{kind} is damaged.", "Delete the folder and rebuild.")
                if kind == "cubin":
                    cubins[path.stem] = content
            kernels[path.stem] = description
        first = next(iter(kernels.values()))
        if first["format"] > FORMAT:
            raise KernelError(f"{directory} has the newer format {first['format']}.", "Update liger-export.")
        shape = AttentionShape.from_description(first["shape"])
        return Build(directory, shape, first["target"], first["batch"], kernels, cubins)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise KernelError(f"{directory} is not a complete build.", "Delete the folder and rebuild.") from error


def _write(folder: Path, plan: Plan, order: int, shape: AttentionShape, target: str, batch: int) -> None:
    compiled = compile_plan(plan, shape, target)
    files = {"cubin": compiled.cubin, "ptx": compiled.ptx.encode()}
    for kind, content in files.items():
        (folder / f"{plan.name}.{kind}").write_bytes(content)
    description = {
        "format": FORMAT,
        "order": order,
        "name": compiled.name,
        "target": target,
        "triton": import_triton().__version__,
        "shape": shape.description,
        "batch": batch,
        "arguments": compiled.arguments,
        "divisible_by_16": compiled.divisible,
        "constants": plan.constants,
        "grid": grid_of(plan),
        "threads": compiled.threads,
        "shared_bytes": compiled.shared_bytes,
        "dependent": compiled.is_dependent,
        "sha256": {kind: _sha256(content) for kind, content in files.items()},
    }
    (folder / f"{plan.name}.json").write_text(json.dumps(description, indent=2) + "\n")


def _digest(what: Any) -> str:
    return _sha256(json.dumps(what, sort_keys=True).encode())[:16]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
