"""The loss of a language-model head, computed in parts, so that the logits of all tokens are never in memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["IGNORED", "can_compute_in_parts", "next_token_loss"]

IGNORED = -100  # a label that is not predicted
LOGITS_PER_PART = 2**26  # 256 MiB in float32


def can_compute_in_parts(head: nn.Module) -> bool:
    """Tell whether a head is a product with its weight and nothing else: no adapter, no quantization, no hook."""
    return type(head) is nn.Linear and head.bias is None and not head._forward_hooks and not head._forward_pre_hooks


def next_token_loss(
    hidden_states: Tensor, head: nn.Module, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy between each position's logits and the next label, as transformers' loss for causal models.

    The gradient of the hidden states is computed together with the loss, part by part.

    Args:
        hidden_states: [B, T, hidden_size].
        head: a head for which ``can_compute_in_parts``.
        labels: int64 [B, T]; ``IGNORED`` is ignored.
        num_items_in_batch: divides the sum of the losses; default: the number of predictions, for the mean.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten().to(hidden_states.device)
    rows, device = hidden_states.flatten(0, 1), hidden_states.device
    weight: Tensor = head.get_parameter("weight")
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        rows, weight = rows.to(dtype), weight.to(dtype)
    with torch.autocast(device.type, enabled=False):
        total: Tensor = _SummedCrossEntropy.apply(rows, weight, targets)  # type: ignore[no-untyped-call]
    return total / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of rows [N, C] times a weight [V, C] with targets [N]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wants_rows, wants_weight, _ = ctx.needs_input_grad
        wide = torch.promote_types(rows.dtype, torch.float32)
        into_rows = torch.empty_like(rows) if wants_rows else None
        into_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        total = torch.zeros((), dtype=wide, device=rows.device)
        size = max(1, LOGITS_PER_PART // len(weight))
        for start in range(0, len(rows), size):
            part, labels = rows[start : start + size], targets[start : start + size, None]
            is_predicted = labels != IGNORED
            labels = labels.clamp(min=0)
            logs = (part @ weight.T).log_softmax(-1, dtype=wide)
            chosen = torch.where(is_predicted, logs.gather(1, labels), 0)
            total -= chosen.sum()
            if not (wants_rows or wants_weight):
                continue
            # The gradient of the logits: probabilities, less one at the label
            into_logits = torch.exp(logs, out=torch.empty_like(logs, dtype=rows.dtype))
            into_logits.scatter_(1, labels, chosen.expm1().to(rows.dtype))
            if into_rows is not None:
                into_rows[start : start + size] = (into_logits @ weight) * is_predicted
            if into_weight is not None:
                into_weight += into_logits.T @ (part * is_predicted)
        ctx.save_for_backward(into_rows, None if into_weight is None else into_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        into_rows, into_weight = (
            None if saved is None else saved * gradients[0].to(saved.dtype) for saved in ctx.saved_tensors
        )
        return into_rows, into_weight, None
