"""Kernels compiled ahead of time, on any machine, for named GPUs: cubin, PTX and what a launcher must know.

A build is one folder: ``{kernel}.cubin``, ``{kernel}.ptx`` and ``{kernel}.json`` for each kernel. The same sources,
shape, target and Triton give the same bytes, and a build is made once: its folder's name is a hash of all of these.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from liger_export.errors import EnvironmentMismatchError, KernelError
from liger_export.files import new_directory
from liger_export.kernels.plans import (
    Plan,
    chunk_plans,
    dequantize_plan,
    linear_plan,
    many_step_plan,
    pointwise_plans,
    step_plan,
)
from liger_export.kernels.shapes import ACTIVATIONS, AttentionShape, LinearShape

__all__ = [
    "TARGETS",
    "Build",
    "Compiled",
    "build_kernels",
    "compile_plan",
    "compiles_many_steps",
    "grid_of",
    "load_build",
    "plan_key",
    "plans_of",
    "require_target",
]

TARGETS = {f"sm_{capability}": capability for capability in (80, 86, 87, 89, 90, 100, 120)}
SHARED_KILOBYTES = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # CUDA C++ guide, per block
FORMAT = 4
MANY_STEP_KERNEL = "many_step_kernel"
DEPENDENT_LAUNCH = 90  # the first architecture whose kernels may begin before the one before has ended
KERNEL_MODULES = ("step", "many", "chunk", "pointwise", "linear", "candidates")
MODULES = ("features", "overlap", "plans", "shapes", *KERNEL_MODULES, "build")

FLOAT32 = (
    "cos",
    "sin",
    "state",
    "next_state",
    "features",
    "gates",
    "block_gates",
    "entering",
    "logits",
    "temperature",
    "sums",
    "next_sums",
    "candidates",
    "values",
    "frequencies",
    "vectors",
)
INTEGERS = {
    "position_ids": "*i64",
    "counts": "*i32",
    "chosen": "*i64",
    "lists": "*i64",
    "next_lists": "*i64",
    "indices": "*i32",
    "words": "*i32",
    "zero_points": "*u8",
}
SCALARS = {
    **dict.fromkeys(("length", "padded_length", "width", "count", "parts", "in_features", "out_features"), "i32"),
    **dict.fromkeys(("has_norm", "has_zero_points", "has_bias", "has_residual"), "i32"),
    **dict.fromkeys(("gate_normalizer", "recurrent_weight", "epsilon"), "fp32"),
}
READ_ONE_BY_ONE = ("position_ids", "counts", "chosen", "indices")  # and so at any address


@dataclass(frozen=True)
class Build:
    """Compiled kernels of one layer's shape for one GPU architecture.

    Attributes:
        directory: where they lie.
        shape: the one they compute.
        target: a key of ``TARGETS``.
        batch: sequences that the step kernel's grid was cut for; others run as well.
        kernels: per plan's name, those of attention in the order in which they run, the contents of its JSON file.
        cubins: per kernel, the machine's code.
    """

    directory: Path
    shape: AttentionShape
    target: str
    batch: int
    kernels: dict[str, dict[str, Any]]
    cubins: dict[str, bytes]

    def require(self, shape: AttentionShape, target: str) -> None:
        """Refuse to be launched for anything else.

        Raises:
            KernelError: these kernels compute another shape, or run on another GPU.
        """
        for what, asked, built in (
            *((name, value, getattr(self.shape, name)) for name, value in asdict(shape).items()),
            ("target", target, self.target),
        ):
            if asked != built:
                raise KernelError(
                    f"The kernels in {self.directory} were built for {what} {built}, not {asked}.",
                    "Build them for this layer and GPU: liger_export.kernels.build.build_kernels.",
                )


@dataclass(frozen=True)
class Compiled:
    """One kernel for one GPU architecture.

    Attributes:
        name: of the function in ``ptx`` and ``cubin``.
        ptx: its text.
        cubin: the machine's code.
        arguments: name and type of each, in order; Triton's own two come last and are null.
        divisible: names of those that it takes to be multiples of 16.
        threads: of a program.
        shared_bytes: of shared memory that a program needs.
        is_dependent: it waits for the kernel before by itself, and may begin before that has ended.
    """

    name: str
    ptx: str
    cubin: bytes
    arguments: list[dict[str, str]]
    divisible: list[str]
    threads: int
    shared_bytes: int
    is_dependent: bool


def build_kernels(
    shape: AttentionShape,
    target: str,
    cache: Path,
    *,
    batch: int = 1,
    ring: bool = True,
    linears: Iterable[LinearShape] = (),
) -> Build:
    """Compile all kernels of a layer, or take them from the cache. Needs no GPU.

    Args:
        shape: its attention's.
        target: a key of ``TARGETS``.
        cache: folder of builds.
        batch: sequences that the step kernel is cut for.
        ring: whether the step kernel updates its window in place, as a ring, or moves it oldest first.
        linears: its linear layers, as far as these kernels shall compute them.

    Raises:
        KernelError: no such target, or the architecture has too little shared memory for this shape.
        EnvironmentMismatchError: Triton is not installed, or set to its interpreter.
    """
    require_target(target)
    plans = plans_of(shape, batch=batch, ring=ring, linears=linears)
    if not compiles_many_steps():
        plans = [plan for plan in plans if plan.kernel != MANY_STEP_KERNEL]
    keys = [plan_key(plan, shape, target) for plan in plans]
    made = [batch, keys, [asdict(plan) for plan in plans], _triton().__version__]
    directory = cache / f"{target}-{_digest(made)}"
    if not directory.exists():
        with new_directory(directory) as folder:
            for order, plan in enumerate(plans):
                _write(folder, plan, order, shape, target, batch)
    return load_build(directory)


def compiles_many_steps() -> bool:
    """Whether the Triton that is installed keeps the tiles of ``kernels/many.py`` in registers.

    3.6 moves them through shared memory, which makes that kernel slower than the other; 3.9 does not. Without it a
    build launches the other for any batch.

    Raises:
        EnvironmentMismatchError: Triton is not installed.
    """
    return tuple(int(part) for part in _triton().__version__.split(".")[:2]) >= (3, 9)


def require_target(target: str) -> None:
    """Check that kernels can be compiled for an architecture. Raises KernelError."""
    if target not in TARGETS:
        raise KernelError(f"There is no target {target}.", f"Choose one of {', '.join(TARGETS)}.")


def plans_of(
    shape: AttentionShape, *, batch: int = 1, ring: bool = True, linears: Iterable[LinearShape] = ()
) -> list[Plan]:
    """What ``build_kernels`` compiles for a layer, those of attention first and in the order in which they run."""
    steps = (step_plan(shape, batch, ring=ring), many_step_plan(shape, ring=ring))
    plans = {plan.name: plan for plan in steps if plan is not None} | chunk_plans(shape) | pointwise_plans()
    for linear in linears:
        needed = [linear_plan(linear), *([dequantize_plan(linear.bits, linear.block_size)] if linear.bits < 16 else [])]
        plans |= {plan.name: plan for plan in needed}
    return list(plans.values())


def plan_key(plan: Plan, shape: AttentionShape, target: str) -> str:
    """A hash of everything that decides a kernel's code, but Triton's version; needs no Triton.

    Plans that differ in name and grid only have the same code.
    """
    code = {name: value for name, value in asdict(plan).items() if name not in ("grid", "variant")}
    return _digest([FORMAT, target, asdict(shape), code, _source_hashes(MODULES)])


def grid_of(plan: Plan) -> list[dict[str, Any]]:
    """A plan's grid as a build describes it."""
    return [asdict(axis) for axis in plan.grid]


@cache
def _source_hashes(modules: tuple[str, ...]) -> dict[str, str]:
    here = Path(__file__).parent
    return {name: _sha256((here / f"{name}.py").read_bytes()) for name in modules}


def load_build(directory: Path) -> Build:
    """Read a build, checking every file's hash.

    Raises:
        KernelError: a file is missing, damaged or of a newer format.
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
            raise KernelError(f"{directory} is of format {first['format']}.", "Update liger-export.")
        return Build(directory, AttentionShape(**first["shape"]), first["target"], first["batch"], kernels, cubins)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise KernelError(f"{directory} holds no whole build.", "Delete the folder and rebuild.") from error


def compile_plan(plan: Plan, shape: AttentionShape, target: str) -> Compiled:
    """Compile one kernel; arguments that the plan names as constants are none any more.

    Raises:
        KernelError: the architecture has too little shared memory for this shape.
        EnvironmentMismatchError: Triton is not installed, or set to its interpreter.
    """
    triton, function = _triton(), _function(plan.kernel)
    is_dependent = "PDL" in plan.constants and TARGETS[target] >= DEPENDENT_LAUNCH
    constants = plan.constants | ({"PDL": True} if is_dependent else {})
    types = {name: _type_of(name, plan, shape) for name in function.arg_names}
    divisible = [name for name, kind in types.items() if _is_divisible(name, kind, shape)]
    source = triton.compiler.ASTSource(
        function,
        types,
        {(function.arg_names.index(name),): value for name, value in constants.items()},
        {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    gpu = triton.backends.compiler.GPUTarget("cuda", TARGETS[target], 32)
    # Line tables would put this machine's paths into the files.
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(source, target=gpu, options={**plan.options, "enable_fp_fusion": True})
    metadata = compiled.metadata
    available = SHARED_KILOBYTES[TARGETS[target]] * 1024
    if metadata.shared > available:
        raise KernelError(
            f"{plan.kernel} of head size {shape.head_dim} in {shape.activation} needs {metadata.shared} bytes of "
            f"shared memory; {target} has {available}.",
            "Build for another target or in float16, or run this layer in PyTorch.",
        )
    if metadata.global_scratch_size:
        raise KernelError(f"{plan.kernel} needs scratch memory.", "Report this shape as a bug.")
    arguments = [{"name": name, "type": kind} for name, kind in types.items() if kind != "constexpr"]
    # Triton's own, of kernels that use none: null.
    arguments += [{"name": name, "type": "*i8"} for name in ("global_scratch", "profile_scratch")]
    return Compiled(
        metadata.name,
        compiled.asm["ptx"],
        compiled.asm["cubin"],
        arguments,
        divisible,
        32 * metadata.num_warps,
        metadata.shared,
        is_dependent,
    )


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
        "triton": _triton().__version__,
        "shape": asdict(shape),
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


def _type_of(name: str, plan: Plan, shape: AttentionShape) -> str:
    if name in plan.constants:
        return "constexpr"
    if name in plan.types:
        return plan.types[name]
    if name in SCALARS:
        return SCALARS[name]
    if name.endswith("stride"):
        return "i32"
    return INTEGERS.get(name) or ("*fp32" if name in FLOAT32 else f"*{ACTIVATIONS[shape.activation]}")


def _is_divisible(name: str, kind: str, shape: AttentionShape) -> bool:
    """Whether the kernel may count on it: pointers in bytes, strides and padded lengths in elements."""
    if kind == "constexpr":
        return False
    if name.endswith("stride"):
        return shape.head_dim % 16 == 0
    return name in ("padded_length", "in_features") or (kind.startswith("*") and name not in READ_ONE_BY_ONE)


def _function(kernel: str) -> Any:
    modules = [importlib.import_module(f"liger_export.kernels.{module}") for module in KERNEL_MODULES]
    function = next(getattr(module, kernel) for module in modules if kernel in module.__all__)
    if not hasattr(function, "cache_key"):
        raise EnvironmentMismatchError("Triton runs as an interpreter.", "Unset TRITON_INTERPRET to compile kernels.")
    return function


def _triton() -> Any:
    try:
        import triton
        import triton.backends.compiler
        import triton.compiler
    except ImportError as error:
        raise EnvironmentMismatchError(
            "Compiling kernels needs Triton, which is not installed.", "Install it on Linux: pip install triton."
        ) from error
    return triton


def _digest(what: Any) -> str:
    return _sha256(json.dumps(what, sort_keys=True).encode())[:16]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
