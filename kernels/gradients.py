"""The gradient of an attention operator by kernels, as a function of torch tensors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_export.kernels.launch import gate_selections, no_triton, require_offsets, shape_of
from liger_export.kernels.plans import BLOCK, CHUNK, chunkwise_plans
from liger_export.kernels.runner import call_key, launch_all
from liger_export.kernels.shapes import AttentionShape
from liger_export.kernels.training_plans import backward_plans

__all__ = ["projection_gradients"]

Tensors = tuple[Tensor, ...]
Launches = list[tuple[Any, tuple[Any, ...]]]  # each kernel with its arguments


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

    Features, gates, states and scores are computed again. While it runs, a call holds 3 * T / 64 states, four copies of
    the queries and six of the keys in float32, and two of each in their dtype.

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
    batch, length, _ = projections[0].shape
    output_gradient = output_gradient if output_gradient.stride(-1) == 1 else output_gradient.contiguous()
    require_offsets((*projections, output_gradient))
    cos, sin, position_ids = (tensor.contiguous() for tensor in positions)
    counts = (position_ids >= 0).sum(1, dtype=torch.int32)
    padded = length + -length % CHUNK
    made = _Buffers.of(shape, projections[0], padded)
    gradients = tuple(torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in projections)
    call = _Call(
        projections=projections,
        angles=(cos, sin),
        position_ids=position_ids,
        counts=counts,
        state=state,
        output_gradient=output_gradient,
        gradients=gradients,
        lengths=(length, padded),
        selections=gate_selections(counts.device, projections[0].dtype),
        options=(float(gate_normalizer), float(recurrent_weight)),  # Triton compiles integers in
    )
    try:
        launches = [*_prepare(call, made), *_states(call, made), *_window(call, made), *_recurrence(call, made)]
    except ImportError as error:
        raise no_triton() from error
    plans = [chunkwise_plans(shape)["prepare_kernel"], *backward_plans(shape, padded // CHUNK).values()]
    planned = [(kernel, plan, tensors) for (kernel, tensors), plan in zip(launches, plans, strict=True)]
    outside = (*projections, cos, sin, position_ids, *state, output_gradient)
    launch_all(("gradients", shape, counts.device, call_key(outside)), planned, batch, length)
    return gradients


@dataclass(frozen=True, slots=True)
class _Call:
    """Inputs and results of a call.

    Attributes:
        projections: query, key and value. gradients: those of the projections.
        angles: cos and sin. position_ids: int64 [B, T]. counts: int32 [B], tokens without padding.
        state: recurrent_state, window_key and window_value.
        output_gradient: [B, T, H * D].
        lengths: T, and T rounded up to a multiple of 64.
        selections: which gates decay a token (``chunk_states.selection``).
        options: gate normalizer and recurrent weight.
    """

    projections: Tensors
    angles: Tensors
    position_ids: Tensor
    counts: Tensor
    state: Tensors
    output_gradient: Tensor
    gradients: Tensors
    lengths: tuple[int, int]
    selections: Tensor
    options: tuple[float, float]

    @property
    def query_strides(self) -> tuple[int, ...]:
        return self.projections[0].stride()[:2]

    @property
    def key_strides(self) -> tuple[int, ...]:
        return self.projections[1].stride()[:2]

    @property
    def value_strides(self) -> tuple[int, ...]:
        return self.projections[2].stride()[:2]

    @property
    def gradient_strides(self) -> tuple[int, ...]:
        return self.output_gradient.stride()[:2]


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Tensors that the kernels pass to each other; their docstrings give the shapes."""

    features: Tensor
    gates: Tensor
    decayed_keys: Tensor
    block_gates: Tensor
    rotated_keys: Tensor
    query_features: Tensor
    rotated_queries: Tensor
    added: Tensor
    chunk_decays: Tensor
    entering: Tensor
    leaving: Tensor
    final_state: Tensor
    log_sums: Tensor
    means: Tensor
    rotated_query_gradient: Tensor
    rotated_key_gradient: Tensor
    window_value_gradient: Tensor
    into_queries: Tensor
    into_keys: Tensor
    into_gates: Tensor

    @classmethod
    def of(cls, shape: AttentionShape, query: Tensor, padded: int) -> "_Buffers":
        """Allocate the buffers for sequences of ``padded`` tokens."""
        size = shape.head_dim
        heads = (len(query), shape.num_key_value_heads)
        query_heads = (len(query), shape.num_key_value_heads * shape.num_queries_per_kv)
        keys, queries, chunks = (*heads, padded, size), (*query_heads, padded, size), (*heads, padded // CHUNK, size)

        def wide(*size: int) -> Tensor:
            return query.new_empty(*size, dtype=torch.float32)

        return cls(
            features=wide(*keys),
            gates=wide(*keys),
            decayed_keys=query.new_empty(*keys),
            block_gates=wide(*heads, padded // BLOCK, size),
            rotated_keys=query.new_empty(*keys),
            query_features=query.new_empty(*queries),
            rotated_queries=query.new_empty(*queries),
            added=wide(*chunks, size),
            chunk_decays=wide(*chunks),
            entering=wide(*chunks, size),
            leaving=wide(*chunks, size),
            final_state=wide(*heads, size, size),
            log_sums=wide(*queries[:-1]),
            means=wide(*queries[:-1]),
            rotated_query_gradient=wide(*queries),
            rotated_key_gradient=wide(*keys),
            window_value_gradient=wide(*keys),
            into_queries=wide(*queries),
            into_keys=wide(*queries),
            into_gates=wide(*queries),
        )


def _prepare(call: _Call, made: _Buffers) -> Launches:
    """Launches that compute features, gates, and rotated queries and keys."""
    from liger_export.kernels.chunkwise import prepare_kernel
    from liger_export.kernels.chunkwise_backward import prepare_queries_kernel

    query, key, _ = call.projections
    prepared = (made.features, made.gates, made.decayed_keys, made.block_gates, made.rotated_keys)
    return [
        (
            prepare_kernel,
            (
                *(key, *call.angles, call.position_ids, call.counts, *prepared),
                *(*call.key_strides, *call.lengths, call.options[0]),
            ),
        ),
        (
            prepare_queries_kernel,
            (
                *(query, *call.angles, call.counts, made.query_features, made.rotated_queries),
                *(*call.query_strides, *call.lengths),
            ),
        ),
    ]


def _states(call: _Call, made: _Buffers) -> Launches:
    """Launches that compute the state before each chunk and its gradient after it."""
    from liger_export.kernels.chunk_states import chunk_state_gradients_kernel, chunk_states_kernel, scan_kernel

    _, _, value = call.projections
    start, padded = call.state[0], call.lengths[1]
    return [
        (
            chunk_states_kernel,
            (
                *(value, made.features, made.gates, call.selections, call.counts, made.added, made.chunk_decays),
                *(*call.value_strides, padded),
            ),
        ),
        (scan_kernel, (made.added, made.chunk_decays, start, made.entering, made.final_state, padded)),
        (
            chunk_state_gradients_kernel,
            (
                *(call.output_gradient, made.query_features, made.gates, call.selections, call.counts, made.added),
                *(*call.gradient_strides, padded),
            ),
        ),
        (scan_kernel, (made.added, made.chunk_decays, start, made.leaving, made.final_state, padded)),
    ]


def _window(call: _Call, made: _Buffers) -> Launches:
    """Launches that compute the window's gradients."""
    from liger_export.kernels.window_backward import window_key_gradient_kernel, window_query_gradient_kernel

    _, _, value = call.projections
    rows = (value, call.output_gradient, made.rotated_queries, made.rotated_keys)
    sums, counted = (made.log_sums, made.means), (call.position_ids, call.counts)
    numbers = (*call.value_strides, *call.gradient_strides, *call.lengths, call.options[1])
    into_keys = (made.rotated_key_gradient, made.window_value_gradient)
    return [
        (
            window_query_gradient_kernel,
            (*rows, *counted, *call.state[1:], made.rotated_query_gradient, *sums, *numbers),
        ),
        (window_key_gradient_kernel, (*rows, *sums, *counted, *into_keys, *numbers)),
    ]


def _recurrence(call: _Call, made: _Buffers) -> Launches:
    """Launches that compute the recurrence's gradients, and add the window's."""
    from liger_export.kernels import chunkwise_backward as kernels

    _, key, value = call.projections
    query_gradient, key_gradient, value_gradient = call.gradients
    features = (made.query_features, made.features, made.gates, call.selections, call.counts)
    padded, weight = call.lengths[1], call.options[1]
    return [
        (
            kernels.pair_gradients_kernel,
            (
                *(value, call.output_gradient, *features, made.entering, made.leaving),
                *(made.into_queries, made.into_keys, made.into_gates),
                *(*call.value_strides, *call.gradient_strides, padded),
            ),
        ),
        (
            kernels.value_gradients_kernel,
            (
                *(call.output_gradient, *features, made.leaving, made.window_value_gradient, value_gradient),
                *(*call.gradient_strides, *call.lengths, weight),
            ),
        ),
        (
            kernels.finish_queries_kernel,
            (
                *(*call.angles, call.counts, made.query_features, made.into_queries),
                *(made.rotated_query_gradient, query_gradient, *call.lengths, weight),
            ),
        ),
        (
            kernels.finish_keys_kernel,
            (
                *(key, *call.angles, call.counts, made.features, made.into_keys, made.into_gates),
                *(made.rotated_key_gradient, key_gradient, *call.key_strides, *call.lengths, *call.options),
            ),
        ),
    ]
