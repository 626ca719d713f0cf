"""The kernels as the CUDA implementation of the ``liger::`` operators."""

import importlib.util
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from liger_export.errors import KernelError
from liger_export.kernels.launch import chunk, shape_of, step
from liger_export.kernels.shapes import KERNEL_MIXERS
from liger_export.ops import ATTENTIONS
from liger_export.ops.signatures import CALL_INPUTS

__all__ = ["attention", "register_cuda_kernels"]


@cache
def register_cuda_kernels() -> bool:
    """Run the operators on CUDA tensors by these kernels from now on; called by the model when it first meets one.

    Returns:
        Whether it was done: without Triton the operators stay as they are.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    for mixer in KERNEL_MIXERS:
        torch.library.register_kernel(f"liger::{ATTENTIONS[mixer].name}", "cuda", partial(attention, mixer))
    return True


def attention(mixer: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator of a mixer, its arguments in its order: one token by the step kernel, more by the chunk kernels.

    What no kernel computes (float64, other head sizes, wider windows) runs in PyTorch as before.
    """
    op = ATTENTIONS[mixer]
    query, key, value, *positions = arguments[: len(CALL_INPUTS)]
    state = tuple(tensor.contiguous() for tensor in arguments[len(CALL_INPUTS) : len(op.signature.inputs)])
    options = dict(zip(op.signature.options, arguments[len(op.signature.inputs) :], strict=True))
    projections = tuple(part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    try:
        shape_of(mixer, projections, state)
    except KernelError:
        return op.run(*arguments)
    if query.shape[1] == 0:
        return op.run(*arguments)
    form = step if query.shape[1] == 1 else chunk
    return form(mixer, projections, tuple(positions), state, **options)
