"""Training for integer weights: the forward pass computes with rounded weights, as the package will.

The gradient passes through the rounding unchanged (straight-through estimator, arXiv 1308.3432, section 4). So the
adapter learns to correct the rounding errors of the weights that it is merged into.
"""

from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

from liger_export.checkpoint import expected_tensors
from liger_export.config import LigerConfig
from liger_export.errors import QuantizationError
from liger_export.precision import METHODS, Precision, Scheme

__all__ = ["check_trainable", "compute_with_rounded_weights", "round_to_nearest"]


def check_trainable(precision: Precision, config: LigerConfig) -> None:
    """Check that training can round a model's weights as ``convert`` does. Raises QuantizationError."""
    matrices = {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}
    precision.check(matrices, config.tie_word_embeddings)
    if precision.method != METHODS[0]:
        raise QuantizationError(f"Training cannot round with {precision.method}.", f"Use method {METHODS[0]}.")


def round_to_nearest(weight: Tensor, scheme: Scheme) -> Tensor:
    """Return the values that a package stores for a matrix with method ``rtn``.

    Args:
        weight: float32 [N, K]; K is a multiple of the block size.
        scheme: bits, block size and zero points.

    Returns:
        float32 [N, K], as ``quantize.blocks.dequantize`` returns them.
    """
    blocks = weight.unflatten(1, (-1, scheme.block_size))  # [N, K / block_size, block_size]
    largest = 2**scheme.bits - 1
    if scheme.symmetric:
        extreme = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
        scale, zero_point = extreme / -scheme.fixed_zero_point, torch.full_like(extreme, scheme.fixed_zero_point)
    else:
        least, most = blocks.aminmax(dim=2, keepdim=True)
        least, most = least.clamp(max=0), most.clamp(min=0)
        scale = (most - least) / largest
        zero_point = torch.where(scale == 0, 0, (-least / scale).clamp(0, largest).round())
    inverse = torch.where(scale == 0, 0, 1 / scale)
    integers = (blocks * inverse + zero_point).round().clamp(0, largest)
    values: Tensor = ((integers - zero_point) * scale).flatten(1)
    return values


def compute_with_rounded_weights(model: PeftModel, precision: Precision) -> None:
    """Make every matrix compute with the values that a package of this precision stores.

    Matrices with an adapter are merged and rounded anew in every call. The others are rounded in place, once.
    """
    base = model.get_base_model()
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, LoraLinear)}
    for name, module in adapted.items():
        if scheme := precision.scheme(f"{name}.weight"):
            module.forward = partial(_forward, module, scheme)
    inside = tuple(f"{name}." for name in adapted)
    for name, parameter in base.named_parameters():  # names a tied embedding only once
        scheme = precision.scheme(name)
        if scheme and parameter.ndim == 2 and not name.startswith(inside):
            parameter.data = round_to_nearest(parameter.data, scheme)


def _forward(module: LoraLinear, scheme: Scheme, hidden_states: Tensor) -> Tensor:
    base = module.base_layer
    assert isinstance(base, nn.Linear)
    with torch.autocast(hidden_states.device.type, enabled=False):  # the weights are merged and rounded in float32
        merged = base.weight + module.get_delta_weight("default")
        weight: Tensor = _Rounded.apply(merged, scheme)  # type: ignore[no-untyped-call]
    return functional.linear(hidden_states, weight, base.bias)


class _Rounded(torch.autograd.Function):
    """Rounding whose derivative is one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scheme: Scheme) -> Tensor:
        return round_to_nearest(weight, scheme)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
