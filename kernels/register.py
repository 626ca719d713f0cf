"""The kernels as the CUDA implementation of the ``liger::`` operators in PyTorch."""

import importlib.util
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from liger_export.errors import KernelError
from liger_export.kernels.gradients import projection_gradients
from liger_export.kernels.launch import chunkwise, shape_of, step
from liger_export.kernels.shapes import KERNEL_MIXERS, MAX_STEP_WINDOW, TRAINED_MIXERS
from liger_export.ops import ATTENTIONS
from liger_export.ops.signatures import CALL_INPUTS

__all__ = ["attention", "gradient", "register_cuda_kernels"]

Tensors = tuple[Tensor, ...]


@cache
def register_cuda_kernels() -> bool:
    """Register the kernels with PyTorch for CUDA tensors. The model calls this when it first sees a CUDA tensor.

    Returns:
        True if the kernels were registered; False if Triton is missing, which leaves the operators unchanged.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    for mixer in TRAINED_MIXERS:
        torch.library.register_kernel(f"liger::{ATTENTIONS[mixer].name}", "cuda", partial(attention, mixer))
        ATTENTIONS[mixer].register_gradients("cuda", partial(gradient, mixer))
    return True


def attention(mixer: str, *arguments: Any) -> tuple[Tensor, ...]:
    """Run the operator of a mixer with its own arguments: the step kernel for one token, chunkwise kernels for more.

    One token with a window that the step kernel does not support runs the chunkwise kernels. Calls that no kernel
    supports (float64, other head sizes, wider windows, one token of gsa) run the PyTorch implementation.
    """
    op = ATTENTIONS[mixer]
    call = _supported(mixer, arguments)
    is_step = arguments[0].shape[1] == 1
    if call is None or (is_step and mixer not in KERNEL_MIXERS):
        return op.run(*arguments)
    projections, positions, state = call
    launch = step if is_step and state[-1].shape[2] <= MAX_STEP_WINDOW else chunkwise
    return launch(mixer, projections, positions, state, **_options(mixer, arguments))


def gradient(mixer: str, *arguments: Any) -> Tensors | None:
    """Gradients of query, key and value from the operator's own arguments and the gradient of its output.

    None if no kernel supports the call.
    """
    *tensors_and_options, output_gradient = arguments
    call = _supported(mixer, tensors_and_options)
    if call is None:
        return None
    gate_normalizer, recurrent_weight = ({"gate_normalizer": 1.0} | _options(mixer, tensors_and_options)).values()
    projections, positions, state = call
    gradients: Tensors = _gradient(
        mixer, *projections, *positions, state, output_gradient, gate_normalizer, recurrent_weight
    )
    return gradients


@torch.library.custom_op("liger::projection_gradients", mutates_args=())
def _gradient(
    mixer: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    state: Sequence[Tensor],
    output_gradient: Tensor,
    gate_normalizer: float,
    recurrent_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``projection_gradients`` as an operator, so that ``torch.compile`` does not look into it."""
    options = (gate_normalizer, recurrent_weight)
    into_query, into_key, into_value = projection_gradients(
        mixer, (query, key, value), (cos, sin, position_ids), tuple(state), output_gradient, *options
    )
    return into_query, into_key, into_value


@_gradient.register_fake
def _fake_gradient(
    mixer: str, query: Tensor, key: Tensor, value: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _supported(mixer: str, arguments: Sequence[Any]) -> tuple[Tensors, Tensors, Tensors] | None:
    """Projections, positions and state as the kernels take them; None if no kernel supports the call."""
    query, key, value, *positions = arguments[: len(CALL_INPUTS)]
    end = len(ATTENTIONS[mixer].signature.inputs)
    state = tuple(tensor.contiguous() for tensor in arguments[len(CALL_INPUTS) : end])
    projections = tuple(part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    try:
        shape_of(mixer, projections, state)
    except KernelError:
        return None
    return (projections, tuple(positions), state) if query.shape[1] else None


def _options(mixer: str, arguments: Sequence[Any]) -> dict[str, float]:
    signature = ATTENTIONS[mixer].signature
    return dict(zip(signature.options, arguments[len(signature.inputs) :], strict=True))
