"""Each mixer's attention in PyTorch, as a function of a layer's heads, state, learned tensors and options.

Every function takes ``(heads, state, parameters, *options)``, in the order of its signature, and returns the output
[B, T, H, D] and the next state tensors. References: ``ops/naive.py``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from liger_export.config import LigerConfig
from liger_export.ops.heads import Heads
from liger_export.ops.lolcats import initial_lolcats_parameters, lolcats_attention
from liger_export.ops.recurrence import gated_recurrence
from liger_export.ops.window import join_window, leave_window, window_attention

__all__ = ["FORWARDS", "initial_parameters"]

Tensors = tuple[Tensor, ...]


def _gla(heads: Heads, state: Tensors, _: Tensors, gate_normalizer: float, recurrent_weight: float) -> Tensors:
    """arXiv 2503.01496, equations 5 to 8: the gate is computed from the key, and both feature maps are softmax."""
    key = heads.wide_key
    gate = F.logsigmoid(key) / gate_normalizer
    return _gated_linear(heads, key.softmax(-1), gate, state, recurrent_weight)


def _hgrn2(heads: Heads, state: Tensors, _: Tensors, recurrent_weight: float) -> Tensors:
    """HGRN2 (arXiv 2404.07904, equation 7): the decay is the forget gate f = sigmoid(k), and the key is 1 - f."""
    key = heads.wide_key
    return _gated_linear(heads, torch.sigmoid(-key), F.logsigmoid(key), state, recurrent_weight)


def _gated_linear(heads: Heads, features: Tensor, gate: Tensor, state: Tensors, recurrent_weight: float) -> Tensors:
    query, features, decays = heads.wide_query.softmax(-1), heads.zero_padding(features), heads.decays(gate)
    output, next_state = gated_recurrence(query, features, heads.value, decays, state[0])
    return _mix_with_window(heads, output, (next_state,), state[1:], recurrent_weight)


def _gsa(heads: Heads, state: Tensors, _: Tensors, gate_normalizer: float, recurrent_weight: float) -> Tensors:
    """Gated slot attention (arXiv 2409.07146, section 3): M slots of keys and values, read by softmax over slots."""
    slot_key, slot_value, *window = state
    slots = slot_key.shape[2]
    pooled = heads.wide_key.unflatten(-1, (slots, -1)).mean(-1)  # [B, T, G, M]
    gate = F.logsigmoid(pooled) / gate_normalizer
    written, decays = heads.zero_padding(-torch.expm1(gate)), heads.decays(gate)  # 1 - exp g without cancellation
    scores, slot_key = gated_recurrence(heads.query, written, heads.key, decays, slot_key, read_values=True)
    output, slot_value = gated_recurrence(scores.softmax(-1), written, heads.value, decays, slot_value)
    return _mix_with_window(heads, output, (slot_key, slot_value), tuple(window), recurrent_weight)


def _mix_with_window(
    heads: Heads, recurrent: Tensor, next_state: Tensors, window: Tensors, recurrent_weight: float
) -> Tensors:
    """Average the outputs of the recurrence and the softmax window, weighted by ``recurrent_weight``."""
    windowed, *next_window = window_attention(
        heads.rotated_query, heads.rotated_key, heads.value, heads.position_ids, *window
    )
    output = recurrent_weight * recurrent.to(windowed.dtype) + (1 - recurrent_weight) * windowed
    return output, *next_state, *next_window


def _lolcats(heads: Heads, state: Tensors, parameters: Tensors) -> Tensors:
    """LoLCATs (arXiv 2410.10254, section 3.2): softmax window and linear attention under one denominator."""
    sums, normalizer, window_key, window_value = state
    query_map, key_map, window_factors = parameters
    window = window_key.shape[2]
    span = join_window(heads.rotated_key, heads.value, heads.position_ids, window_key, window_value)
    output, sums, normalizer = lolcats_attention(
        heads.rotated_query, span, (query_map, key_map, window_factors), (sums, normalizer), window
    )
    return output.to(heads.query.dtype), sums, normalizer, *leave_window(span, window)


def _softmax(heads: Heads, state: Tensors, _: Tensors) -> Tensors:
    """The base model's own attention, in a bounded window."""
    return window_attention(heads.rotated_query, heads.rotated_key, heads.value, heads.position_ids, *state)


FORWARDS: dict[str, Callable[..., Tensors]] = {
    "gla": _gla,
    "hgrn2": _hgrn2,
    "gsa": _gsa,
    "lolcats": _lolcats,
    "softmax": _softmax,
}
INITIAL_PARAMETERS: dict[str, Callable[[LigerConfig], dict[str, Tensor]]] = {"lolcats": initial_lolcats_parameters}


def initial_parameters(config: LigerConfig) -> dict[str, Tensor]:
    """Start values of a layer's learned tensors, by name, in float32; empty if the mixer learns none."""
    initial = INITIAL_PARAMETERS.get(config.mixer)
    return initial(config) if initial else {}
