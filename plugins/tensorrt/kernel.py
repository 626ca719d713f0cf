"""The step kernel as TensorRT launches it: its only parameters are pointers to the inputs and to the outputs.

Strides, gate normalizer and recurrent weight are constants of the compiled kernel. The two scratch pointers that Triton
appends are dropped, because TensorRT would not pass them and a kernel without scratch memory never reads them.
"""

import re
from dataclasses import dataclass, replace
from functools import cache

from liger_export.errors import KernelError
from liger_export.kernels.compiler import compile_plan
from liger_export.kernels.plans import step_plan
from liger_export.kernels.shapes import AttentionShape, block_of

__all__ = ["PluginKernel", "fitting_tactics", "plugin_kernel", "tactics"]

WIDTHS = (16, 32, 64, 128)  # value columns per program; narrower blocks give more programs per head
ARGUMENTS = 13  # 9 inputs and 4 outputs


@dataclass(frozen=True, slots=True)
class PluginKernel:
    """A compiled kernel with the launch parameters that a plugin passes to TensorRT.

    Attributes:
        name: name of the kernel in ``ptx``.
        ptx: PTX with ``ARGUMENTS`` pointer parameters: query, key, value, cos, sin, position_ids, recurrent state,
            window key and window value, then the output and the next value of each of the three states.
        column_blocks: blocks of value columns, the grid's x.
        num_key_value_heads: the grid's y. Its z is the batch size.
        threads: threads per program.
        shared_bytes: shared memory per program, in bytes.
    """

    name: str
    ptx: str
    column_blocks: int
    num_key_value_heads: int
    threads: int
    shared_bytes: int


def tactics(head_dim: int) -> list[int]:
    """Return the numbers of the tilings for a head size, counted from 1."""
    return [number for number, width in enumerate(WIDTHS, 1) if width <= block_of(head_dim)]


def fitting_tactics(shape: AttentionShape, target: str) -> list[int]:
    """Return the tactics that fit into the shared memory of an architecture. Each is compiled to find out.

    Raises:
        EnvironmentMismatchError: Triton is not installed, or it is set to its interpreter.
    """
    fitting = []
    for tactic in tactics(shape.head_dim):
        try:
            plugin_kernel(shape, target, tactic, gate_normalizer=1.0, recurrent_weight=0.5)
        except KernelError:
            continue
        fitting.append(tactic)
    return fitting


@cache  # all layers ask for the same kernels
def plugin_kernel(
    shape: AttentionShape, target: str, tactic: int, *, gate_normalizer: float, recurrent_weight: float
) -> PluginKernel:
    """Compile the attention of one layer for a single token, with window rows ordered oldest first. Needs no GPU.

    Args:
        shape: shape of the layer.
        target: a key of ``kernels.targets.TARGETS``.
        tactic: one of ``tactics(shape.head_dim)``.
        gate_normalizer: divisor of the log gates; 1 for HGRN2.
        recurrent_weight: weight of the recurrence in the output.

    Raises:
        KernelError: there is no such tactic, or the architecture has too little shared memory.
        EnvironmentMismatchError: Triton is not installed, or it is set to its interpreter.
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
    """Drop all parameters after the first ``ARGUMENTS``. Raises KernelError if the kernel reads one of them."""
    head, entry, rest = ptx.partition(f".entry {name}(")
    declared, closing, body = rest.partition(")")
    parameters = [line.strip() for line in declared.split(",")]
    dropped = [parameter.split()[-1] for parameter in parameters[ARGUMENTS:]]
    used = [parameter for parameter in dropped if re.search(rf"\b{parameter}\b", body)]
    if not entry or len(parameters) < ARGUMENTS or used:
        raise KernelError(
            "This version of Triton lays out kernel parameters differently.",
            "Install Triton 3.9: pip install 'triton==3.9.*'",
        )
    kept = ",\n\t".join(parameters[:ARGUMENTS])
    return f"{head}{entry}\n\t{kept}\n{closing}{body}"
