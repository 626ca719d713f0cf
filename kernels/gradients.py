"""The gradient of an attention operator by kernels, as a function of torch tensors."""

import torch
from torch import Tensor

from liger_export.kernels.launch import no_triton, require_offsets, shape_of
from liger_export.kernels.plans import BLOCK, CHUNK, backward_plans, chunkwise_plans
from liger_export.kernels.runner import call_key, launch_all
from liger_export.kernels.shapes import AttentionShape

__all__ = ["projection_gradients"]

Tensors = tuple[Tensor, ...]


def projection_gradients(
    mixer: str,
    projections: Tensors,
    positions: Tensors,
    state: Tensors,
    output_gradient: Tensor,
    gate_normalizer: float = 1.0,
    recurrent_weight: float = 0.5,
) -> Tensors:
    """Gradients of query, key and value for any number of tokens T, from the gradient of the output alone.

    Features, gates, states and scores are computed again. While it runs, a call holds 2 * T / 16 states in float32, and
    about six copies of queries and keys.

    Args:
        mixer, projections, positions, state, gate_normalizer, recurrent_weight: the arguments of ``launch.chunkwise``.
        output_gradient: [B, T, H * D], in the dtype of the projections.

    Returns:
        Gradients of query [B, T, H * D], key and value [B, T, G * D], zero at padding.

    Raises:
        KernelError: no kernel supports this shape, or T is too large for 32-bit offsets.
        EnvironmentMismatchError: Triton is not installed.
    """
    shape = shape_of(mixer, projections, state)
    query, key, value = projections
    batch, length, _ = query.shape
    output_gradient = output_gradient if output_gradient.stride(-1) == 1 else output_gradient.contiguous()
    require_offsets((*projections, output_gradient))
    try:
        from liger_export.kernels import chunkwise_backward as recurrence
        from liger_export.kernels import window_backward as window
        from liger_export.kernels.chunkwise import prepare_kernel
    except ImportError as error:
        raise no_triton() from error
    cos, sin, position_ids = (tensor.contiguous() for tensor in positions)
    counts = (position_ids >= 0).sum(1, dtype=torch.int32)
    padded = length + -length % CHUNK
    prepared, states, by_query, by_key, sums = _buffers(shape, query, padded)
    _, gates, decayed_keys, block_gates = prepared
    (rotated_keys, *into_keys), (decayed_queries, rotated_queries, into_queries) = by_key, by_query
    gradients = tuple(torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in projections)
    query_strides, key_strides, value_strides, gradient_strides = (
        rows.stride()[:2] for rows in (query, key, value, output_gradient)
    )
    lengths, strides = (length, padded), (*value_strides, *gradient_strides)
    divisor, weight = float(gate_normalizer), float(recurrent_weight)  # Triton compiles integers in
    arguments = {
        prepare_kernel: (
            *(key, cos, sin, position_ids, counts, *prepared, rotated_keys),
            *(*key_strides, *lengths, divisor),
        ),
        recurrence.prepare_queries_kernel: (
            *(query, cos, sin, counts, gates, decayed_queries, rotated_queries),
            *(*query_strides, *lengths),
        ),
        recurrence.states_kernel: (
            *(value, decayed_keys, block_gates, counts, state[0], states[0]),
            *(*value_strides, padded),
        ),
        recurrence.state_gradients_kernel: (
            *(output_gradient, decayed_queries, block_gates, counts, states[1]),
            *(*gradient_strides, padded),
        ),
        window.window_query_gradient_kernel: (
            *(value, output_gradient, rotated_queries, rotated_keys, position_ids, counts, *state[1:]),
            *(into_queries, *sums, *strides, *lengths, weight),
        ),
        window.window_key_gradient_kernel: (
            *(value, output_gradient, rotated_queries, rotated_keys, *sums, position_ids, counts, *into_keys),
            *(*strides, *lengths, weight),
        ),
        recurrence.gradient_kernel: (
            *(query, key, value, output_gradient, cos, sin, counts, *prepared, *states, into_queries, *into_keys),
            *(*gradients, *query_strides, *key_strides, *strides, *lengths, divisor, weight),
        ),
    }
    plans = [chunkwise_plans(shape)["prepare_kernel"], *backward_plans(shape).values()]
    launches = [(kernel, plan, tensors) for (kernel, tensors), plan in zip(arguments.items(), plans, strict=True)]
    outside = (*projections, cos, sin, position_ids, *state, output_gradient)
    launch_all(("gradients", shape, query.device, call_key(outside)), launches, batch, length)
    return gradients


def _buffers(shape: AttentionShape, query: Tensor, padded: int) -> tuple[Tensors, Tensors, Tensors, Tensors, Tensors]:
    """Allocate what the kernels pass to each other.

    Returns:
        The results of ``prepare_kernel`` but the rotated keys; the states before each block and their gradients after
        it; decayed and rotated queries and the gradient of the latter; rotated keys, their gradient and the window's
        gradient of values; and the two sums of each query.
    """
    batch, head_dim = len(query), shape.head_dim
    keys = (batch, shape.num_key_value_heads, padded)
    queries = (batch, shape.num_key_value_heads * shape.num_queries_per_kv, padded)
    blocks = (*keys[:2], padded // BLOCK, head_dim)

    def wide(*size: int) -> Tensor:
        return query.new_empty(*size, dtype=torch.float32)

    prepared = (wide(*keys, head_dim), wide(*keys, head_dim), query.new_empty(*keys, head_dim), wide(*blocks))
    states = (wide(*blocks, head_dim), wide(*blocks, head_dim))
    by_query = (query.new_empty(*queries, head_dim), query.new_empty(*queries, head_dim), wide(*queries, head_dim))
    by_key = (query.new_empty(*keys, head_dim), wide(*keys, head_dim), wide(*keys, head_dim))
    return prepared, states, by_query, by_key, (wide(*queries), wide(*queries))
