"""The attention kernels as functions of torch tensors."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from liger_export.errors import EnvironmentMismatchError, KernelError
from liger_export.kernels.compiler import compiles_batched_steps
from liger_export.kernels.plans import (
    BATCHED_COLUMNS,
    BLOCK,
    CHUNK,
    HALVINGS,
    Plan,
    batched_step_plan,
    chunkwise_plans,
    step_plan,
)
from liger_export.kernels.runner import Launches, call_key, launch_all
from liger_export.kernels.shapes import AttentionShape
from liger_export.kernels.targets import DEPENDENT_LAUNCH_CAPABILITY
from liger_export.kernels.training_plans import SCANNED_CHUNKS, score_plan, state_plans

__all__ = [
    "chunkwise",
    "gate_selections",
    "no_triton",
    "oldest_first",
    "require_offsets",
    "shape_of",
    "step",
    "step_in_place",
]

Tensors = tuple[Tensor, ...]


def step(
    mixer: str,
    projections: Tensors,
    positions: Tensors,
    state: Tensors,
    gate_normalizer: float = 1.0,
    recurrent_weight: float = 0.5,
) -> Tensors:
    """Run one token as the operator does: states out of place, the window oldest first.

    Args:
        mixer: one of ``KERNEL_MIXERS``; for ``chunkwise`` one of ``TRAINED_MIXERS``.
        projections: query [B, 1, H * D], key and value [B, 1, G * D]; they may be slices of one packed row.
        positions: cos and sin, float32 [B, 1, D / 2], and position_ids, int64 [B, 1], -1 for no token.
        state: recurrent_state, float32 [B, G, D, D], window_key and window_value [B, G, W, D].
        gate_normalizer: divides the log gates; 1 for hgrn2.
        recurrent_weight: weight of the recurrence in the output.

    Returns:
        Output [B, 1, H * D], and the next three state tensors.

    Raises:
        KernelError: no kernel supports this shape.
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
    """Run one token with states updated in place. Arguments as for ``step``.

    The window is a ring: position p has row p % W. For the first W tokens this is the operator's order, oldest first;
    after that ``oldest_first`` restores it. A step reads every row once and writes one.

    Returns:
        Output [B, 1, H * D].

    Raises:
        KernelError: no kernel supports this shape.
        EnvironmentMismatchError: Triton is not installed.
    """
    return _step(mixer, projections, positions, state, state, (gate_normalizer, recurrent_weight))


def chunkwise(
    mixer: str,
    projections: Tensors,
    positions: Tensors,
    state: Tensors,
    gate_normalizer: float = 1.0,
    recurrent_weight: float = 0.5,
) -> Tensors:
    """Run any number of tokens T from any state, states out of place and the window oldest first.

    Arguments as for ``step``, with T instead of 1; for gsa the state begins with slot_key and slot_value, both float32
    [B, G, D, D]. Padding may only end a row. Besides its results, a call allocates T / 64 copies of the recurrent state
    (twice as many from 449 tokens), two of the keys in float32 and two in their dtype, and for gsa one of the queries
    in float32.

    Returns:
        Output [B, T, H * D], and the next state tensors.

    Raises:
        KernelError: no kernel supports this shape, or T is too large for 32-bit offsets.
        EnvironmentMismatchError: Triton is not installed.
    """
    shape = shape_of(mixer, projections, state)
    batch, length, width = projections[0].shape
    query, key, value = projections
    require_offsets(projections)
    try:
        from liger_export.kernels.chunkwise import output_kernel, prepare_kernel
        from liger_export.kernels.window import leave_kernel, window_kernel
    except ImportError as error:
        raise no_triton() from error
    cos, sin, position_ids = (tensor.contiguous() for tensor in positions)
    counts = (position_ids >= 0).sum(1, dtype=torch.int32)
    *recurrent, window_key, window_value = state
    window = (window_key, window_value)
    lengths = (length, length + -length % CHUNK)
    prepared, rotated_keys, entering = _chunkwise_buffers(shape, query, lengths[1])
    output = query.new_empty(batch, length, width)
    *next_recurrent, next_key, next_value = (torch.empty_like(tensor) for tensor in state)
    query_strides, key_strides, value_strides = (part.stride()[:2] for part in projections)
    divisor, weight = float(gate_normalizer), float(recurrent_weight)  # Triton compiles integers in
    plans = chunkwise_plans(shape)
    scores, first_pass = query, Launches()
    if mixer == "gsa":
        states = (recurrent[0], torch.empty_like(entering), next_recurrent[0])
        scores, first_pass = _first_pass(shape, query, key, prepared, counts, states)
    launches = [
        (
            prepare_kernel,
            plans["prepare_kernel"],
            (
                *(key, cos, sin, position_ids, counts, *prepared, rotated_keys),
                *(*key_strides, *lengths, divisor),
            ),
        ),
        *first_pass,
        *_state_launches(shape, value, prepared, counts, (recurrent[-1], entering, next_recurrent[-1])),
        (
            window_kernel,
            plans["window_kernel"],
            (
                *(query, value, rotated_keys, cos, sin, position_ids, counts, *window, output),
                *(*query_strides, *value_strides, *lengths),
            ),
        ),
        (
            output_kernel,
            plans["output_kernel"],
            (
                *(scores, value, *prepared, counts, entering, output),
                *(*scores.stride()[:2], *value_strides, *lengths, weight),
            ),
        ),
        (
            leave_kernel,
            plans["leave_kernel"],
            (
                *(value, rotated_keys, position_ids, counts, *window, next_key, next_value),
                *(*value_strides, *lengths),
            ),
        ),
    ]
    outside = (*projections, cos, sin, position_ids, *state)
    launch_all(("chunkwise", shape, query.device, call_key(outside)), launches, batch, length)
    return output, *next_recurrent, next_key, next_value


def _first_pass(
    shape: AttentionShape, query: Tensor, key: Tensor, prepared: Tensors, counts: Tensor, states: Tensors
) -> tuple[Tensor, Launches]:
    """Scores of gsa, whose softmax reads the slots' values: float32 [B, T, H * D], and the launches that compute them.

    Args:
        query, key: [B, T, heads * D].
        prepared: results of ``prepare_kernel``.
        counts: int32 [B], tokens without padding.
        states: slot_key before the first token; outputs before each chunk and after the last token.
    """
    from liger_export.kernels.slots import slot_scores_kernel

    features, gates, *_ = prepared
    selections = gate_selections(query.device, query.dtype)
    scores = query.new_empty(query.shape, dtype=torch.float32)
    strides, lengths = (*query.stride()[:2], *key.stride()[:2]), (query.shape[1], gates.shape[2])
    arguments = (query, key, features, gates, selections, counts, states[1], scores, *strides, *lengths)
    passed = _state_launches(shape, key, prepared, counts, states)
    return scores, [*passed, (slot_scores_kernel, score_plan(shape), arguments)]


def _state_launches(
    shape: AttentionShape, value: Tensor, prepared: Tensors, counts: Tensor, states: Tensors
) -> Launches:
    """Launches that pass the state from chunk to chunk.

    Args:
        value: [B, T, G * D].
        prepared: results of ``prepare_kernel``.
        counts: int32 [B], tokens without padding.
        states: before the first token; outputs before each chunk and after the last token.
    """
    from liger_export.kernels.chunk_states import chunk_states_kernel, scan_kernel
    from liger_export.kernels.chunkwise import pass_kernel

    features, gates, decayed_keys, block_gates = prepared
    padded, strides = gates.shape[2], value.stride()[:2]
    if padded < SCANNED_CHUNKS * CHUNK:
        passed = (value, decayed_keys, block_gates, counts, *states, *strides, padded)
        return [(pass_kernel, chunkwise_plans(shape)["pass_kernel"], passed)]
    memory, entering, next_memory = states
    added, decays = torch.empty_like(entering), entering.new_empty(entering.shape[:-1])
    selections, plans = gate_selections(value.device, value.dtype), state_plans(shape, padded // CHUNK)
    chunked = (value, features, gates, selections, counts, added, decays, *strides, padded)
    scanned = (added, decays, memory, entering, next_memory, padded)
    return [
        (chunk_states_kernel, plans["chunk_states_kernel"], chunked),
        (scan_kernel, plans["scan_kernel"], scanned),
    ]


def _chunkwise_buffers(shape: AttentionShape, query: Tensor, padded: int) -> tuple[Tensors, Tensor, Tensor]:
    """Allocate the other results of ``prepare_kernel``, the rotated keys, and the state at the start of each chunk."""
    heads, head_dim = (len(query), shape.num_key_value_heads), shape.head_dim
    features, gates = (query.new_empty(*heads, padded, head_dim, dtype=torch.float32) for _ in range(2))
    decayed_keys, rotated_keys = (query.new_empty(*heads, padded, head_dim) for _ in range(2))
    block_gates = features.new_empty(*heads, padded // BLOCK, head_dim)
    entering = features.new_empty(*heads, padded // CHUNK, head_dim, head_dim)
    return (features, gates, decayed_keys, block_gates), rotated_keys, entering


@cache
def gate_selections(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Make the matrices [8, 64, 64] of ``chunk_states.selection``."""
    tokens, gates = torch.arange(CHUNK, device=device)[:, None], torch.arange(CHUNK, device=device)
    up_to = gates <= tokens
    between = [
        (gates >> shift == tokens >> shift) & (((tokens >> shift) & 1 == 1) == up_to) for shift in range(HALVINGS)
    ]
    return torch.stack([*between, ~up_to, up_to]).to(dtype)


def oldest_first(window: Tensor, seen: Tensor) -> Tensor:
    """Reorder a ring [B, G, W, D] oldest first, after ``seen`` tokens, int64 [B]."""
    size = window.shape[2]
    start = torch.where(seen > size, seen % size, 0)
    rows = (start[:, None] + torch.arange(size, device=window.device)) % size
    return window.gather(2, rows[:, None, :, None].expand_as(window))


def shape_of(mixer: str, projections: Tensors, state: Tensors) -> AttentionShape:
    """Return the attention shape of an operator's tensors.

    Raises:
        KernelError: no kernel supports the shape, or a tensor's dtype or layout.
    """
    query, key, value = projections
    *recurrent, window_key, window_value = state
    _, kv_heads, window, head_dim = window_key.shape
    activation = str(query.dtype).removeprefix("torch.")
    queries_per_kv = query.shape[-1] // (kv_heads * head_dim)
    shape = _shape(mixer, kv_heads, queries_per_kv, head_dim, window, activation)
    if {tensor.dtype for tensor in (*projections, window_key, window_value)} != {query.dtype}:
        raise KernelError("Projections and window differ in dtype.", f"Pass all of them in {activation}.")
    for memory in recurrent:
        if memory.dtype != torch.float32:
            raise KernelError(f"The recurrent state is {memory.dtype}.", "Pass it in float32.")
        if memory.shape[2] != head_dim:
            raise KernelError(
                f"The kernels do not support {memory.shape[2]} slots for head size {head_dim}, only as many.",
                "Run this layer with the PyTorch implementation of its operator.",
            )
    if key.shape[-1] != kv_heads * head_dim or value.shape != key.shape:
        raise KernelError(
            f"Key and value have rows of {key.shape[-1]} and {value.shape[-1]} elements.",
            f"Pass {kv_heads} heads of size {head_dim}, as in the window.",
        )
    if not all(tensor.is_contiguous() for tensor in state) or any(part.stride(-1) != 1 for part in projections):
        raise KernelError("A state tensor or a projection's row is not contiguous.", "Call .contiguous() on it.")
    return shape


# A training step asks for the same shape many times.
_shape = cache(AttentionShape)


def _step(
    mixer: str, projections: Tensors, positions: Tensors, state: Tensors, next_state: Tensors, options: Any
) -> Tensor:
    shape = shape_of(mixer, projections, state)
    batch, length, width = projections[0].shape
    if length != 1:
        raise KernelError(f"The step kernel got {length} tokens.", "Use the chunkwise kernels for more than one token.")
    try:
        from liger_export.kernels.batched import batched_step_kernel
        from liger_export.kernels.step import step_kernel
    except ImportError as error:
        raise no_triton() from error
    query, in_place = projections[0], next_state is state
    output, tensors = query.new_empty(batch, 1, width), [tensor.contiguous() for tensor in positions]
    workspace: Tensors = ()
    plan = _batched_plan(shape, batch, ring=in_place)
    if plan is not None:
        kernel, constants, workspace = batched_step_kernel, plan.constants, _batched_workspace(shape, query)
    else:
        kernel, plan = step_kernel, step_plan(shape, batch, ring=in_place)
        constants = plan.constants | {"READS_AHEAD": False}
    kernel[plan.programs(batch)](
        *(*projections, *tensors, *state, output, *next_state, *workspace),
        *(part.stride(0) for part in projections),
        *options,
        **{**constants, **plan.options, **_dependent_launch(query.device)},
    )
    return output


def _batched_plan(shape: AttentionShape, batch: int, *, ring: bool) -> Plan | None:
    """Plan the batched step kernel, if the batch is large enough and Triton and the kernel support it."""
    if batch * shape.num_key_value_heads * shape.head_dim < BATCHED_COLUMNS or not compiles_batched_steps():
        return None
    return batched_step_plan(shape, ring=ring)


def _batched_workspace(shape: AttentionShape, query: Tensor) -> Tensors:
    heads, queries = (len(query), shape.num_key_value_heads), shape.num_queries_per_kv
    vectors = query.new_empty(*heads, queries + 2, shape.head_dim, dtype=torch.float32)
    return vectors, query.new_empty(*heads, queries, shape.head_dim)


def _dependent_launch(device: torch.device) -> dict[str, bool]:
    """Options for programmatic dependent launch (``dependent_launch``), where the GPU supports it."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < DEPENDENT_LAUNCH_CAPABILITY // 10:
        return {}
    return {"PDL": True, "launch_pdl": True}


def require_offsets(rows: Iterable[Tensor]) -> None:
    """Check that 32-bit offsets reach every element of a sequence in tensors [B, T, width]. Raises KernelError."""
    for part in rows:
        length = part.shape[1]
        if length * part.stride(1) >= 2**31:
            raise KernelError(
                f"One call has {length} tokens, too many for the kernels.", "Split them into several calls."
            )


def no_triton() -> EnvironmentMismatchError:
    """Return the error to raise if Triton is missing."""
    return EnvironmentMismatchError(
        "The GPU kernels need Triton, which is not installed.", "Install it on Linux: pip install triton."
    )
