"""The kernels as the CUDA implementation of the ``liger::`` operators in PyTorch."""

import importlib.util
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from liger_export.errors import KernelError
from liger_export.kernels.launch import chunkwise, shape_of, step
from liger_export.kernels.shapes import KERNEL_MIXERS
from liger_export.ops import ATTENTIONS
from liger_export.ops.signatures import CALL_INPUTS

__all__ = ["attention", "register_cuda_kernels"]


@cache
def register_cuda_kernels() -> bool:
    """Register the kernels with PyTorch for CUDA tensors. The model calls this when it first sees a CUDA tensor.

    Returns:
        True if the kernels were registered; False if Triton is missing, which leaves the operators unchanged.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    for mixer in KERNEL_MIXERS:
        torch.library.register_kernel(f"liger::{ATTENTIONS[mixer].name}", "cuda", partial(attention, mixer))
    return True


def attention(mixer: str, *arguments: Any) -> tuple[Tensor, ...]:
    """Run the operator of a mixer with its own arguments: the step kernel for one token, chunkwise kernels for more.

    Calls that no kernel supports (float64, other head sizes, wider windows) run the PyTorch implementation.
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
    launch = step if query.shape[1] == 1 else chunkwise
    return launch(mixer, projections, tuple(positions), state, **options)
