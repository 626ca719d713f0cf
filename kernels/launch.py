"""The kernels as functions of torch tensors, and as the CUDA implementation of the ``liger::`` operators."""

from typing import Any

import torch
from torch import Tensor

from liger_export.errors import EnvironmentMismatchError, KernelError
from liger_export.kernels.shapes import AttentionShape, block_of

__all__ = ["chunk", "oldest_first", "step", "step_in_place"]

Tensors = tuple[Tensor, ...]

# How the chunk kernels are cut, as measured on an H200 (benchmarks/kernels.py).
PASS = {"BLOCK_K": 32, "BLOCK_V": 32, "num_warps": 4, "num_stages": 3}
WINDOW = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3}
OUTPUT = {"BLOCK_V": 32, "num_warps": 4, "num_stages": 3}
HEADS = 2  # query heads of one program of the output kernel
ROWS = 32  # of the window moved by one program


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
        mixer: one of ``MIXERS``.
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
        from liger_export.kernels.features import MIXER_IDS
    except ImportError as error:
        raise no_triton() from error
    cos, sin, position_ids = (tensor.contiguous() for tensor in positions)
    counts = (position_ids >= 0).sum(1, dtype=torch.int32)
    memory, window_key, window_value = state
    head_dim, groups, block_d = shape.head_dim, shape.groups, block_of(shape.head_dim)
    padded = length + -length % kernels.CHUNK
    sizes, token_sizes = {"G": groups, "D": head_dim}, (length, padded)
    heads = {"R": shape.repeats, **sizes}

    features, gates = (query.new_empty(batch, groups, padded, head_dim, dtype=torch.float32) for _ in range(2))
    decayed_keys, rotated_keys = (query.new_empty(batch, groups, padded, head_dim) for _ in range(2))
    block_gates = features.new_empty(batch, groups, padded // kernels.BLOCK, head_dim)
    entering = features.new_empty(batch, groups, padded // kernels.CHUNK, head_dim, head_dim)
    output = query.new_empty(batch, length, width)
    next_state = tuple(torch.empty_like(tensor) for tensor in state)

    kernels.prepare_kernel[(padded // kernels.BLOCK, groups, batch)](
        *(key, cos, sin, counts),
        *(features, gates, decayed_keys, block_gates, rotated_keys),
        *key.stride()[:2],
        *token_sizes,
        gate_normalizer,
        MIXER=MIXER_IDS[mixer],
        BLOCK_D=block_d,
        **sizes,
    )
    tiles = -(-head_dim // PASS["BLOCK_K"]) * -(-head_dim // PASS["BLOCK_V"])
    kernels.pass_kernel[(tiles, groups, batch)](
        *(value, decayed_keys, block_gates, counts, memory, entering, next_state[0]),
        *value.stride()[:2],
        padded,
        PRECISION=shape.precision,
        **sizes,
        **PASS,
    )
    window = {"W": shape.window, "BLOCK_D": block_d, **sizes}
    kernels.window_kernel[(-(-length // WINDOW["BLOCK_M"]), groups * shape.repeats, batch)](
        *(query, value, rotated_keys, cos, sin, position_ids, counts, window_key, window_value, output),
        *(*query.stride()[:2], *value.stride()[:2]),
        *token_sizes,
        R=shape.repeats,
        PRECISION=shape.precision,
        **window,
        **WINDOW,
    )
    members = min(block_of(shape.repeats, 1), HEADS)
    kernels.output_kernel[(-(-length // kernels.BLOCK), groups * -(-shape.repeats // members), batch)](
        *(query, value, features, gates, decayed_keys, block_gates, counts, entering, output),
        *(*query.stride()[:2], *value.stride()[:2]),
        *token_sizes,
        recurrent_weight,
        HEADS=members,
        BLOCK_D=block_d,
        PRECISION=shape.precision,
        **heads,
        **OUTPUT,
    )
    kernels.leave_kernel[(-(-shape.window // ROWS), groups, batch)](
        *(value, rotated_keys, position_ids, counts, window_key, window_value, *next_state[1:]),
        *value.stride()[:2],
        *token_sizes,
        BLOCK_W=ROWS,
        **window,
    )
    return output, *next_state


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
        from liger_export.kernels.features import MIXER_IDS
        from liger_export.kernels.step import step_kernel
    except ImportError as error:
        raise no_triton() from error
    output = projections[0].new_empty(batch, 1, width)
    block_v = shape.block_v(batch)
    step_kernel[(-(-shape.head_dim // block_v), shape.groups, batch)](
        *projections,
        *(tensor.contiguous() for tensor in positions),
        *state,
        output,
        *next_state,
        *(part.stride(0) for part in projections),
        *options,
        MIXER=MIXER_IDS[mixer],
        G=shape.groups,
        R=shape.repeats,
        D=shape.head_dim,
        W=shape.window,
        BLOCK_R=block_of(shape.repeats, 8),
        BLOCK_D=block_of(shape.head_dim),
        BLOCK_W=block_of(shape.window),
        BLOCK_V=block_v,
        RING=next_state is state,
        PRECISION=shape.precision,
        num_warps=4,
    )
    return output


def no_triton() -> EnvironmentMismatchError:
    """What to raise where Triton is missing."""
    return EnvironmentMismatchError(
        "The GPU kernels need Triton, which is not installed.", "Install it on Linux: pip install triton."
    )
