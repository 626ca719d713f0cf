"""``liger::gla_attention``: Liger attention of one layer as one torch operator.

The operator is what the model calls, what the exporter traces to one node a layer, and where a faster kernel
registers itself. Its gradient recomputes the forward, so training keeps only the operator's inputs.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liger_export.ops.recurrence import gated_recurrence
from liger_export.ops.window import rotate, window_attention

__all__ = ["gla_attention"]

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    recurrent_state: Tensor,
    window_key: Tensor,
    window_value: Tensor,
    gate_normalizer: float,
) -> Outputs:
    head_dim = window_key.shape[-1]
    query, key, value = (tensor.unflatten(-1, (-1, head_dim)) for tensor in (query, key, value))
    is_token = (position_ids >= 0)[:, :, None, None]

    wide = torch.promote_types(query.dtype, torch.float32)
    features = torch.where(is_token, key.to(wide).softmax(-1), 0)
    gate = torch.where(is_token, F.logsigmoid(key.to(wide)) / gate_normalizer, 0)
    values = torch.where(is_token, value, 0)
    recurrent, recurrent_state = gated_recurrence(query.to(wide).softmax(-1), features, values, gate, recurrent_state)

    rotated_query, rotated_key = rotate(query, cos, sin), rotate(key, cos, sin)
    window, window_key, window_value = window_attention(
        rotated_query, rotated_key, values, position_ids, window_key, window_value
    )
    output = 0.5 * recurrent.to(query.dtype) + 0.5 * window
    return output.flatten(2), recurrent_state, window_key, window_value


@torch.library.custom_op("liger::gla_attention", mutates_args=())
def gla_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    recurrent_state: Tensor,
    window_key: Tensor,
    window_value: Tensor,
    gate_normalizer: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Half gated linear attention, half softmax window (arXiv 2503.01496, equations 5 to 8).

    Args:
        query: [B, T, H * D], as projected.
        key: [B, T, G * D], as projected.
        value: [B, T, G * D].
        cos: [B, T, D / 2], cosine of the rotary angles, float32 (float64 with float64 inputs).
        sin: [B, T, D / 2].
        position_ids: int64 [B, T], consecutive within a row; -1 marks padding, which may only end a row and
            leaves no trace.
        recurrent_state: float32 [B, G, D (key), D (value)].
        window_key: [B, G, W, D], rotated keys, oldest first.
        window_value: [B, G, W, D].
        gate_normalizer: divisor of the log gate.

    Returns:
        Output [B, T, H * D] and the next recurrent state, window key and window value.
    """
    outputs = _forward(
        query, key, value, cos, sin, position_ids, recurrent_state, window_key, window_value, gate_normalizer
    )
    return tuple(tensor.contiguous() for tensor in outputs)  # type: ignore[return-value]


@gla_attention.register_fake
def _fake(query: Tensor, key: Tensor, *others: Any) -> Outputs:
    recurrent_state, window_key, window_value = others[4:7]
    return (
        query.new_empty(query.shape),
        torch.empty_like(recurrent_state),
        torch.empty_like(window_key),
        torch.empty_like(window_value),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.gate_normalizer = inputs[-1]


def _backward(ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = [tensor.detach() for tensor in ctx.saved_tensors]
    wanted = [index for index, needed in enumerate(ctx.needs_input_grad[: len(inputs)]) if needed]
    for index in wanted:
        inputs[index].requires_grad_()
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        outputs = partial(_forward, gate_normalizer=ctx.gate_normalizer)(*inputs)
    pairs = zip(outputs, output_gradients, strict=True)
    used = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
    gradients = torch.autograd.grad(
        [out for out, _ in used], [inputs[index] for index in wanted], [grad for _, grad in used], allow_unused=True
    )
    by_input: list[Tensor | None] = [None] * (len(inputs) + 1)
    for index, gradient in zip(wanted, gradients, strict=True):
        by_input[index] = gradient
    return tuple(by_input)


gla_attention.register_autograd(_backward, setup_context=_save_inputs)
