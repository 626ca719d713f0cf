"""Ahead-of-time compilation of one kernel for a named GPU architecture. Needs Triton, but no GPU."""

import importlib
from dataclasses import dataclass
from typing import Any

from liger_export.errors import EnvironmentMismatchError, KernelError
from liger_export.kernels.arguments import is_divisible_by_16, type_of
from liger_export.kernels.plans import Plan
from liger_export.kernels.shapes import AttentionShape
from liger_export.kernels.targets import DEPENDENT_LAUNCH_CAPABILITY, SHARED_KILOBYTES, TARGETS

__all__ = ["KERNEL_MODULES", "Compiled", "compile_plan", "compiles_batched_steps", "import_triton"]

KERNEL_MODULES = ("step", "batched", "chunkwise", "window", "pointwise", "linear", "top_logits")


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one GPU architecture.

    Attributes:
        name: function name in ``ptx`` and ``cubin``.
        ptx: PTX text.
        cubin: machine code.
        arguments: name and type of each argument, in order. The last two are Triton's scratch pointers, always null.
        divisible: names of the arguments that must be multiples of 16.
        threads: threads per program.
        shared_bytes: shared memory per program.
        is_dependent: the kernel waits for its predecessor itself (``dependent_launch``), so it may start earlier.
    """

    name: str
    ptx: str
    cubin: bytes
    arguments: list[dict[str, str]]
    divisible: list[str]
    threads: int
    shared_bytes: int
    is_dependent: bool


def compile_plan(plan: Plan, shape: AttentionShape, target: str) -> Compiled:
    """Compile one kernel. Arguments that the plan gives as constants are left out of the compiled signature.

    Raises:
        KernelError: the architecture has too little shared memory for this shape.
        EnvironmentMismatchError: Triton is not installed, or runs as an interpreter.
    """
    triton, function = import_triton(), _function(plan.kernel)
    is_dependent = "PDL" in plan.constants and TARGETS[target] >= DEPENDENT_LAUNCH_CAPABILITY
    constants = plan.constants | ({"PDL": True} if is_dependent else {})
    types = {name: type_of(name, plan, shape) for name in function.arg_names}
    divisible = [name for name, kind in types.items() if is_divisible_by_16(name, kind, shape)]
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
    _check_memory(metadata, plan, shape, target)
    arguments = [{"name": name, "type": kind} for name, kind in types.items() if kind != "constexpr"]
    # Triton appends two scratch pointers, null for kernels that use no scratch memory.
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


def _check_memory(metadata: Any, plan: Plan, shape: AttentionShape, target: str) -> None:
    available = SHARED_KILOBYTES[TARGETS[target]] * 1024
    if metadata.shared > available:
        raise KernelError(
            f"{plan.kernel} with head size {shape.head_dim} in {shape.activation} needs {metadata.shared} bytes of "
            f"shared memory; {target} has {available}.",
            "Build for another target or in float16, or run this layer in PyTorch.",
        )
    if metadata.global_scratch_size:
        raise KernelError(f"{plan.kernel} needs scratch memory.", "Report this shape as a bug.")


def compiles_batched_steps() -> bool:
    """Tell whether the installed Triton keeps the tiles of ``kernels/batched.py`` in registers.

    Triton 3.6 moves them through shared memory, which makes that kernel slower than ``kernels/step.py``; 3.9 does not.
    With an older Triton, builds leave the kernel out, and batches of any size run the step kernel.

    Raises:
        EnvironmentMismatchError: Triton is not installed.
    """
    return tuple(int(part) for part in import_triton().__version__.split(".")[:2]) >= (3, 9)


def import_triton() -> Any:
    """Import Triton and its compiler. Raises EnvironmentMismatchError if it is not installed."""
    try:
        import triton
        import triton.backends.compiler
        import triton.compiler
    except ImportError as error:
        raise EnvironmentMismatchError(
            "Compiling kernels needs Triton, which is not installed.", "Install it on Linux: pip install triton."
        ) from error
    return triton


def _function(kernel: str) -> Any:
    modules = [importlib.import_module(f"liger_export.kernels.{module}") for module in KERNEL_MODULES]
    function = next(getattr(module, kernel) for module in modules if kernel in module.__all__)
    if not hasattr(function, "cache_key"):
        raise EnvironmentMismatchError("Triton runs as an interpreter.", "Unset TRITON_INTERPRET to compile kernels.")
    return function
