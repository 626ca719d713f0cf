"""The gradient of an attention operator by kernels, as a function of torch tensors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_export.kernels.launch import gate_selections, no_triton, require_offsets, shape_of
from liger_export.kernels.plans import BLOCK, CHUNK, Plan, chunkwise_plans
from liger_export.kernels.runner import Launch, Launches, call_key, launch_all
from liger_export.kernels.shapes import AttentionShape
from liger_export.kernels.training_plans import backward_plans

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

    Features, gates, states and scores are computed again. While it runs, a call holds 3 * T / 64 states, four copies of
    the queries and six of the keys in float32, two of each in their dtype, and 64 products for each query. For gsa,
    T / 64 states are added, two copies of the queries and one of the keys in float32.

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
        plans={"prepare_kernel": chunkwise_plans(shape)["prepare_kernel"], **backward_plans(shape, padded // CHUNK)},
    )
    made = _Buffers.of(shape, projections[0], padded)
    try:
        launches = _two_passes(call, made) if mixer == "gsa" else _one_pass(call, made)
    except ImportError as error:
        raise no_triton() from error
    outside = (*projections, cos, sin, position_ids, *state, output_gradient)
    launch_all(("gradients", shape, counts.device, call_key(outside)), launches, batch, length)
    return gradients


@dataclass(frozen=True, slots=True)
class _Call:
    """Inputs and results of a call.

    Attributes:
        projections: query, key and value. gradients: those of the projections.
        angles: cos and sin. position_ids: int64 [B, T]. counts: int32 [B], tokens without padding.
        state: recurrent_state, or slot_key and slot_value; window_key and window_value.
        output_gradient: [B, T, H * D].
        lengths: T, and T rounded up to a multiple of 64.
        selections: which gates decay a token (``chunk_states.selection``).
        options: gate normalizer and recurrent weight.
        plans: of the kernels, by name.
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
    plans: dict[str, Plan]

    def launch(self, kernel: Any, *arguments: Any, variant: str = "") -> Launch:
        return kernel, self.plans[kernel.__name__ + variant], arguments


def _strides(*rows: Tensor) -> tuple[int, ...]:
    """Elements between sequences and between tokens of each of some tensors [B, T, width]."""
    return tuple(stride for tensor in rows for stride in tensor.stride()[:2])


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
    products: Tensor

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
            products=query.new_empty(*queries[:-1], CHUNK),
        )


@dataclass(frozen=True, slots=True)
class _SlotBuffers:
    """Buffers that only gsa needs, for its first pass, whose state is the keys of the slots."""

    entering: Tensor
    scores: Tensor
    score_gradient: Tensor
    key_gradient: Tensor

    @classmethod
    def of(cls, query: Tensor, made: _Buffers) -> "_SlotBuffers":
        """Allocate the buffers beside those of the second pass."""
        return cls(
            entering=torch.empty_like(made.entering),
            scores=query.new_empty(query.shape, dtype=torch.float32),
            score_gradient=torch.empty_like(made.into_queries),
            key_gradient=torch.empty_like(made.rotated_key_gradient),
        )


@dataclass(frozen=True, slots=True)
class _Pass:
    """A recurrence of a layer: its inputs, and the state before each chunk and its gradient after it.

    A pair adds (upstream . value) sum_m features[m] exp(gates between)[m] written[m] to the loss, where the last factor
    is of the key. In the first pass of gsa, ``upstream`` is the query, ``value`` the key, and ``features`` the gradient
    of the scores (``slots``).

    Attributes:
        value: [B, T, G * D]. upstream: the gradient of the output, [B, T, H * D].
        features: of the queries, [B, H, padded length, D].
        state: float32 [B, G, D, D], before the first token.
        entering, leaving: float32 [B, G, chunks, D, D].
    """

    value: Tensor
    upstream: Tensor
    features: Tensor
    state: Tensor
    entering: Tensor
    leaving: Tensor


def _one_pass(call: _Call, made: _Buffers) -> Launches:
    """Launches for gla and hgrn2."""
    from liger_export.kernels.projection_backward import finish_queries_kernel

    query, _, value = call.projections
    query_gradient, key_gradient, value_gradient = call.gradients
    only = _Pass(value, call.output_gradient, made.query_features, call.state[0], made.entering, made.leaving)
    return [
        _prepare_keys(call, made),
        _prepare_queries(call, made, query),
        *_entering(call, made, only),
        *_leaving(call, made, only),
        *_window(call, made),
        _pairs(call, made, only),
        _products(call, made, only),
        _values(call, made, only, made.window_value_gradient, value_gradient),
        call.launch(
            finish_queries_kernel,
            *(*call.angles, call.counts, made.query_features, made.into_queries, made.rotated_query_gradient),
            *(query_gradient, *call.lengths, call.options[1]),
        ),
        _finish_keys(call, made, key_gradient),
    ]


def _two_passes(call: _Call, made: _Buffers) -> Launches:
    """Launches for gsa: the first pass again, the gradients of the second, then those of the first."""
    from liger_export.kernels import slots

    query, key, value = call.projections
    query_gradient, key_gradient, value_gradient = call.gradients
    own = _SlotBuffers.of(query, made)
    slot_key, slot_value = call.state[:2]
    first = _Pass(key, query, own.score_gradient, slot_key, own.entering, made.leaving)
    second = _Pass(value, call.output_gradient, made.query_features, slot_value, made.entering, made.leaving)
    written = (made.features, made.gates, call.selections, call.counts)
    return [
        _prepare_keys(call, made),
        *_entering(call, made, first),
        call.launch(
            slots.slot_scores_kernel,
            *(query, key, *written, own.entering, own.scores, *_strides(query, key), *call.lengths),
        ),
        _prepare_queries(call, made, own.scores),
        *_entering(call, made, second),
        *_leaving(call, made, second),
        *_window(call, made),
        _pairs(call, made, second),
        _products(call, made, second),
        _values(call, made, second, made.window_value_gradient, value_gradient),
        call.launch(
            slots.score_gradients_kernel,
            *(call.counts, made.query_features, made.into_queries, own.score_gradient, call.lengths[1]),
        ),
        *_leaving(call, made, first),
        _pairs(call, made, first, variant="_added"),
        _products(call, made, first),
        call.launch(
            slots.slot_query_gradients_kernel,
            *(key, *call.angles, own.score_gradient, made.products, *written[1:], own.entering),
            made.rotated_query_gradient,
            *(query_gradient, *_strides(key), *call.lengths, call.options[1]),
        ),
        _finish_keys(call, made, own.key_gradient),
        _values(call, made, first, own.key_gradient, key_gradient),
    ]


def _prepare_keys(call: _Call, made: _Buffers) -> Launch:
    """Compute features, gates and rotated keys."""
    from liger_export.kernels.chunkwise import prepare_kernel

    key = call.projections[1]
    prepared = (made.features, made.gates, made.decayed_keys, made.block_gates, made.rotated_keys)
    return call.launch(
        prepare_kernel,
        *(key, *call.angles, call.position_ids, call.counts, *prepared),
        *(*_strides(key), *call.lengths, call.options[0]),
    )


def _prepare_queries(call: _Call, made: _Buffers, scores: Tensor) -> Launch:
    """Compute query features, the softmax of ``scores`` [B, T, H * D], and rotated queries."""
    from liger_export.kernels.projection_backward import prepare_queries_kernel

    query = call.projections[0]
    return call.launch(
        prepare_queries_kernel,
        *(query, scores, *call.angles, call.counts, made.query_features, made.rotated_queries),
        *(*_strides(query, scores), *call.lengths),
    )


def _entering(call: _Call, made: _Buffers, each: _Pass) -> Launches:
    """Compute the state before each chunk."""
    from liger_export.kernels.chunk_states import chunk_states_kernel, scan_kernel

    padded = call.lengths[1]
    written = (made.features, made.gates, call.selections, call.counts)
    scanned = (made.added, made.chunk_decays)
    return [
        call.launch(chunk_states_kernel, each.value, *written, *scanned, *_strides(each.value), padded),
        call.launch(scan_kernel, *scanned, each.state, each.entering, made.final_state, padded),
    ]


def _leaving(call: _Call, made: _Buffers, each: _Pass) -> Launches:
    """Compute the gradient of the state after each chunk. Follows ``_entering`` of any pass, for the decays."""
    from liger_export.kernels.chunk_states import chunk_state_gradients_kernel, scan_kernel

    padded = call.lengths[1]
    read = (each.upstream, each.features, made.gates, call.selections, call.counts)
    scanned = (made.added, made.chunk_decays, each.state, each.leaving, made.final_state)
    return [
        call.launch(chunk_state_gradients_kernel, *read, made.added, *_strides(each.upstream), padded),
        call.launch(scan_kernel, *scanned, padded, variant="_reverse"),
    ]


def _window(call: _Call, made: _Buffers) -> Launches:
    """Compute the window's gradients."""
    from liger_export.kernels.window_backward import window_key_gradient_kernel, window_query_gradient_kernel

    value = call.projections[2]
    rows = (value, call.output_gradient, made.rotated_queries, made.rotated_keys)
    sums, counted = (made.log_sums, made.means), (call.position_ids, call.counts)
    numbers = (*_strides(value, call.output_gradient), *call.lengths, call.options[1])
    into_keys = (made.rotated_key_gradient, made.window_value_gradient)
    return [
        call.launch(
            window_query_gradient_kernel,
            *(*rows, *counted, *call.state[-2:], made.rotated_query_gradient, *sums, *numbers),
        ),
        call.launch(window_key_gradient_kernel, *(*rows, *sums, *counted, *into_keys, *numbers)),
    ]


def _pairs(call: _Call, made: _Buffers, each: _Pass, variant: str = "") -> Launch:
    """Compute the gradients of features and gates, or with the variant ``_added`` add to those of keys and gates."""
    from liger_export.kernels.chunkwise_backward import pair_gradients_kernel

    return call.launch(
        pair_gradients_kernel,
        *(each.value, each.upstream, each.features, made.features, made.gates, call.selections, call.counts),
        *(each.entering, each.leaving, made.into_queries, made.into_keys, made.into_gates),
        *(*_strides(each.value, each.upstream), call.lengths[1]),
        variant=variant,
    )


def _products(call: _Call, made: _Buffers, each: _Pass) -> Launch:
    """Compute the products of features within chunks."""
    from liger_export.kernels.chunkwise_backward import pair_products_kernel

    written = (made.features, made.gates, call.selections)
    return call.launch(pair_products_kernel, each.features, *written, made.products, call.lengths[1])


def _values(call: _Call, made: _Buffers, each: _Pass, others: Tensor, gradient: Tensor) -> Launch:
    """Compute the gradient of ``each.value``, plus ``others`` [B, G, padded length, D]. Follows ``_products``."""
    from liger_export.kernels.chunkwise_backward import value_gradients_kernel

    return call.launch(
        value_gradients_kernel,
        *(each.upstream, made.products, made.features, made.gates, call.selections, call.counts),
        *(each.leaving, others, gradient, *_strides(each.upstream), *call.lengths, call.options[1]),
    )


def _finish_keys(call: _Call, made: _Buffers, gradient: Tensor) -> Launch:
    """Compute the gradients of keys from those of features, gates and rotated keys."""
    from liger_export.kernels.projection_backward import finish_keys_kernel

    key = call.projections[1]
    return call.launch(
        finish_keys_kernel,
        *(key, *call.angles, call.counts, made.features, made.into_keys, made.into_gates, made.rotated_key_gradient),
        *(gradient, *_strides(key), *call.lengths, *call.options),
    )
