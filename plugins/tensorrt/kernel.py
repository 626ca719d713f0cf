"""The step kernel as TensorRT launches it: pointers to the inputs, then to the outputs, and nothing else.

Strides, gate normalizer and recurrent weight are constants of the compiled kernel. So are Triton's own two arguments:
TensorRT would not pass them, and a kernel that needs no scratch memory never reads them.
"""

import re
from dataclasses import dataclass, replace
from functools import cache

from liger_export.errors import KernelError
from liger_export.kernels.compiler import compile_plan
from liger_export.kernels.plans import step_plan
from liger_export.kernels.shapes import AttentionShape, block_of

__all__ = ["PluginKernel", "fitting_tactics", "plugin_kernel", "tactics"]

WIDTHS = (16, 32, 64, 128)  # value columns of a program: the fewer, the more programs a head has
ARGUMENTS = 13  # 9 inputs and 4 outputs


@dataclass(frozen=True, slots=True)
class PluginKernel:
    """What a plugin hands to TensorRT.

    Attributes:
        name: of the kernel in ``ptx``.
        ptx: its text, with ``ARGUMENTS`` parameters: query, key, value, cos, sin, position_ids, recurrent state, window
            key and window value, then the output and the next three, all pointers.
        columns: programs along x.
        groups: programs along y; along z stands the batch.
        threads: of a program.
        shared_bytes: of shared memory that a program needs.
    """

    name: str
    ptx: str
    columns: int
    groups: int
    threads: int
    shared_bytes: int


def tactics(head_dim: int) -> list[int]:
    """Numbers of the ways to cut the kernel, from 1 on."""
    return [number for number, width in enumerate(WIDTHS, 1) if width <= block_of(head_dim)]


def fitting_tactics(shape: AttentionShape, target: str) -> list[int]:
    """Those of ``tactics`` for whose programs the architecture has enough shared memory; each is compiled to know.

    Raises:
        EnvironmentMismatchError: as ``plugin_kernel``.
    """
    fitting = []
    for tactic in tactics(shape.head_dim):
        try:
            plugin_kernel(shape, target, tactic, gate_normalizer=1.0, recurrent_weight=0.5)
        except KernelError:
            continue
        fitting.append(tactic)
    return fitting


@cache  # every layer asks for the same ones
def plugin_kernel(
    shape: AttentionShape, target: str, tactic: int, *, gate_normalizer: float, recurrent_weight: float
) -> PluginKernel:
    """Compile one token of a layer's attention, rows of the window oldest first. Needs no GPU.

    Args:
        shape: the layer's.
        target: a key of ``kernels.targets.TARGETS``.
        tactic: one of ``tactics(shape.head_dim)``.
        gate_normalizer: divides the log gates; 1 for hgrn2.
        recurrent_weight: share of the recurrence in the output.

    Raises:
        KernelError: there is no such tactic, or the architecture has too little shared memory.
        EnvironmentMismatchError: Triton is not installed, or set to its interpreter.
    """
    if tactic not in tactics(shape.head_dim):
        raise KernelError(f"There is no tactic {tactic}.", f"Choose one of {tactics(shape.head_dim)}.")
    plan = step_plan(shape, 1, ring=False)
    row = shape.num_key_value_heads * shape.head_dim
    constants = {
        **plan.constants,
        "BLOCK_V": WIDTHS[tactic - 1],
        "query_stride": row * shape.num_queries_per_kv,
        "key_stride": row,
        "value_stride": row,
        "gate_normalizer": gate_normalizer,
        "recurrent_weight": recurrent_weight,
    }
    compiled = compile_plan(replace(plan, constants=constants), shape, target)
    return PluginKernel(
        compiled.name,
        _without_unused_parameters(compiled.ptx, compiled.name),
        -(-shape.head_dim // WIDTHS[tactic - 1]),
        shape.num_key_value_heads,
        compiled.threads,
        compiled.shared_bytes,
    )


def _without_unused_parameters(ptx: str, name: str) -> str:
    """Drop the parameters after the ``ARGUMENTS`` first, which nothing may read."""
    head, entry, rest = ptx.partition(f".entry {name}(")
    declared, closing, body = rest.partition(")")
    parameters = [line.strip() for line in declared.split(",")]
    dropped = [parameter.split()[-1] for parameter in parameters[ARGUMENTS:]]
    used = [parameter for parameter in dropped if re.search(rf"\b{parameter}\b", body)]
    if not entry or len(parameters) < ARGUMENTS or used:
        raise KernelError("Triton laid the kernel's parameters out in another way.", "Install Triton 3.6.")
    kept = ",\n\t".join(parameters[:ARGUMENTS])
    return f"{head}{entry}\n\t{kept}\n{closing}{body}"
