"""The kernels as functions of torch tensors, and as the CUDA implementation of the ``liger::`` operators."""

from typing import Any

import torch
from torch import Tensor

from liger_export.errors import EnvironmentMismatchError, KernelError
from liger_export.kernels.build import DEPENDENT_LAUNCH, compiles_many_steps
from liger_export.kernels.plans import BLOCK, CHUNK, MANY_COLUMNS, chunk_plans, many_step_plan, step_plan
from liger_export.kernels.shapes import AttentionShape

__all__ = ["chunk", "oldest_first", "step", "step_in_place"]

Tensors = tuple[Tensor, ...]


def step(
    mixer: str,
    projections: Tensors,
    positions: Tensors,
    state: Tensors,
    gate_normalizer: float = 1.0,
    recurrent_weight: float = 0.5,
) -> Tensors:
    """One token, states out of place and the window oldest first: the operator's contract.

    Args:
        mixer: one of ``KERNEL_MIXERS``.
        projections: query [B, 1, H * D], key and value [B, 1, G * D]; parts of a packed row will do.
        positions: cos and sin, float32 [B, 1, D / 2], and position_ids, int64 [B, 1], -1 for no token.
        state: recurrent_state, float32 [B, G, D, D], window_key and window_value [B, G, W, D].
        gate_normalizer: divides the log gates; 1 for hgrn2.
        recurrent_weight: share of the recurrence in the output.

    Returns:
        Output [B, 1, H * D], and the next three state tensors.

    Raises:
        KernelError: no kernel computes this shape.
        EnvironmentMismatchError: Triton is not installed.
    """
    next_state = tuple(torch.empty_like(tensor) for tensor in state)
    output = _step(mixer, projections, positions, state, next_state, (gate_normalizer, recurrent_weight))
    return output, *next_state


def step_in_place(
    mixer: str,
    projections: Tensors,
    positions: Tensors,
    state: Tensors,
    gate_normalizer: float = 1.0,
    recurrent_weight: float = 0.5,
) -> Tensor:
    """One token, states in place; arguments as ``step``.

    The window is a ring: the row of position p is p % W. Until W tokens that is the contract's order, oldest first;
    ``oldest_first`` restores it after. Every row is read once a step and one is written.

    Returns:
        Output [B, 1, H * D].

    Raises:
        KernelError: no kernel computes this shape.
        EnvironmentMismatchError: Triton is not installed.
    """
    return _step(mixer, projections, positions, state, state, (gate_normalizer, recurrent_weight))


def chunk(
    mixer: str,
    projections: Tensors,
    positions: Tensors,
    state: Tensors,
    gate_normalizer: float = 1.0,
    recurrent_weight: float = 0.5,
) -> Tensors:
    """Any number of tokens T from any state, states out of place and the window oldest first.

    Arguments as ``step``, with T in the place of 1; padding may only end a row. Beside its results it takes
    T / 64 states' worth of memory, and keys in float32 twice, while it runs.

    Returns:
        Output [B, T, H * D], and the next three state tensors.

    Raises:
        KernelError: no kernel computes this shape.
        EnvironmentMismatchError: Triton is not installed.
    """
    shape = shape_of(mixer, projections, state)
    batch, length, width = projections[0].shape
    query, key, value = projections
    if max(length * part.stride(1) for part in projections) >= 2**31:
        raise KernelError(f"The chunk kernel was given {length} tokens in one call.", "Cut them into several calls.")
    try:
        from liger_export.kernels import chunk as kernels
    except ImportError as error:
        raise no_triton() from error
    cos, sin, position_ids = (tensor.contiguous() for tensor in positions)
    counts = (position_ids >= 0).sum(1, dtype=torch.int32)
    memory, *window = state
    heads, head_dim, padded = (batch, shape.groups), shape.head_dim, length + -length % CHUNK

    features, gates = (query.new_empty(*heads, padded, head_dim, dtype=torch.float32) for _ in range(2))
    decayed_keys, rotated_keys = (query.new_empty(*heads, padded, head_dim) for _ in range(2))
    block_gates = features.new_empty(*heads, padded // BLOCK, head_dim)
    entering = features.new_empty(*heads, padded // CHUNK, head_dim, head_dim)
    output = query.new_empty(batch, length, width)
    next_memory, *next_window = (torch.empty_like(tensor) for tensor in state)

    query_strides, key_strides, value_strides = (part.stride()[:2] for part in projections)
    lengths = (length, padded)
    prepared = (features, gates, decayed_keys, block_gates)
    arguments = {
        "prepare_kernel": (
            *(key, cos, sin, counts, *prepared, rotated_keys),
            *(*key_strides, *lengths, gate_normalizer),
        ),
        "pass_kernel": (
            *(value, decayed_keys, block_gates, counts, memory, entering, next_memory),
            *(*value_strides, padded),
        ),
        "window_kernel": (
            *(query, value, rotated_keys, cos, sin, position_ids, counts, *window, output),
            *(*query_strides, *value_strides, *lengths),
        ),
        "output_kernel": (
            *(query, value, *prepared, counts, entering, output),
            *(*query_strides, *value_strides, *lengths, recurrent_weight),
        ),
        "leave_kernel": (
            *(value, rotated_keys, position_ids, counts, *window, *next_window),
            *(*value_strides, *lengths),
        ),
    }
    for name, plan in chunk_plans(shape).items():
        kernel = getattr(kernels, name)
        kernel[plan.programs(batch, length)](*arguments[name], **plan.constants, **plan.options)
    return output, next_memory, *next_window


def oldest_first(window: Tensor, seen: Tensor) -> Tensor:
    """The contract's order of a ring [B, G, W, D] after ``seen`` tokens, int64 [B]."""
    size = window.shape[2]
    start = torch.where(seen > size, seen % size, 0)
    rows = (start[:, None] + torch.arange(size, device=window.device)) % size
    return window.gather(2, rows[:, None, :, None].expand_as(window))


def shape_of(mixer: str, projections: Tensors, state: Tensors) -> AttentionShape:
    """The shape that an operator's tensors have.

    Raises:
        KernelError: no kernel computes it, or a tensor is laid out as no kernel reads it.
    """
    query, key, value = projections
    memory, window_key, window_value = state
    _, groups, window, head_dim = window_key.shape
    activation = str(query.dtype).removeprefix("torch.")
    shape = AttentionShape(mixer, groups, query.shape[-1] // (groups * head_dim), head_dim, window, activation)
    if {tensor.dtype for tensor in (*projections, window_key, window_value)} != {query.dtype}:
        raise KernelError("Projections and window differ in dtype.", f"Give all of them in {activation}.")
    if memory.dtype != torch.float32:
        raise KernelError(f"The recurrent state is {memory.dtype}.", "Give it in float32.")
    if key.shape[-1] != groups * head_dim or value.shape != key.shape:
        raise KernelError(
            f"Key and value have rows of {key.shape[-1]} and {value.shape[-1]} values.",
            f"The window asks for {groups} heads of {head_dim}.",
        )
    if not all(tensor.is_contiguous() for tensor in state) or any(part.stride(-1) != 1 for part in projections):
        raise KernelError("A state tensor or a projection's row is not contiguous.", "Call .contiguous() on it.")
    return shape


def _step(
    mixer: str, projections: Tensors, positions: Tensors, state: Tensors, next_state: Tensors, options: Any
) -> Tensor:
    shape = shape_of(mixer, projections, state)
    batch, length, width = projections[0].shape
    if length != 1:
        raise KernelError(f"The step kernel was given {length} tokens.", "Use the chunk kernel for more than one.")
    try:
        from liger_export.kernels.many import many_step_kernel
        from liger_export.kernels.step import step_kernel
    except ImportError as error:
        raise no_triton() from error
    query, in_place = projections[0], next_state is state
    output, tensors = query.new_empty(batch, 1, width), [tensor.contiguous() for tensor in positions]
    kernel, plan = step_kernel, step_plan(shape, batch, ring=in_place)
    memory: Tensors = ()
    is_many = batch * shape.groups * shape.head_dim >= MANY_COLUMNS
    if is_many and compiles_many_steps() and (many := many_step_plan(shape, ring=in_place)):
        kernel, plan, heads = many_step_kernel, many, (batch, shape.groups)
        vectors = query.new_empty(*heads, shape.repeats + 2, shape.head_dim, dtype=torch.float32)
        memory = (vectors, query.new_empty(*heads, shape.repeats, shape.head_dim))
    constants = plan.constants | {"READS_AHEAD": False} if kernel is step_kernel else plan.constants
    kernel[plan.programs(batch)](
        *(*projections, *tensors, *state, output, *next_state, *memory),
        *(part.stride(0) for part in projections),
        *options,
        **{**constants, **plan.options, **_early_launch(query.device)},
    )
    return output


def _early_launch(device: torch.device) -> dict[str, bool]:
    """Has a kernel begin while the one before ends, for which it waits by itself (``overlap``), where a GPU can."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < DEPENDENT_LAUNCH // 10:
        return {}
    return {"PDL": True, "launch_pdl": True}


def no_triton() -> EnvironmentMismatchError:
    """What to raise where Triton is missing."""
    return EnvironmentMismatchError(
        "The GPU kernels need Triton, which is not installed.", "Install it on Linux: pip install triton."
    )
