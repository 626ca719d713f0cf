"""The attention of each mixer as one function of a layer's heads, its state, its learned tensors and its options.

``forms.SIGNATURES`` names them. A function returns the output [B, T, H, D] and the next state.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from liger_export.ops.lolcats import lolcats_attention
from liger_export.ops.recurrence import gated_recurrence
from liger_export.ops.window import join_window, leave_window, rotate, window_attention

__all__ = ["FORWARDS", "Heads"]

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """What a layer's projections give a mixer, padding blanked out.

    Attributes:
        query: [B, T, H, D], as projected.
        key: [B, T, G, D], as projected.
        value: [B, T, G, D], zero at padding.
        rotated_query: [B, T, H, D].
        rotated_key: [B, T, G, D].
        position_ids: int64 [B, T], -1 at padding.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    rotated_query: Tensor
    rotated_key: Tensor
    position_ids: Tensor

    @classmethod
    def of(
        cls, head_dim: int, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor
    ) -> "Heads":
        """Split packed projections [B, T, heads * D] into heads and rotate them."""
        query, key, value = (tensor.unflatten(-1, (-1, head_dim)) for tensor in (query, key, value))
        value = torch.where((position_ids >= 0)[:, :, None, None], value, 0)
        return cls(query, key, value, rotate(query, cos, sin), rotate(key, cos, sin), position_ids)

    @property
    def wide_query(self) -> Tensor:
        """``query`` in float32, or float64 if it is float64."""
        return self.query.to(torch.promote_types(self.query.dtype, torch.float32))

    @property
    def wide_key(self) -> Tensor:
        """``key`` in float32, or float64 if it is float64."""
        return self.key.to(torch.promote_types(self.key.dtype, torch.float32))

    def tokens_only(self, tensor: Tensor) -> Tensor:
        """[B, T, heads, ...] with zeros at padding, which then leaves a state as it is."""
        return torch.where((self.position_ids >= 0)[:, :, None, None], tensor, 0)


def _gla(heads: Heads, state: Tensors, _: Tensors, gate_normalizer: float, recurrent_weight: float) -> Tensors:
    """arXiv 2503.01496, equations 5 to 8: the gate is made of the key, both feature maps are softmax."""
    key = heads.wide_key
    gate = F.logsigmoid(key) / gate_normalizer
    return _gated_linear(heads, key.softmax(-1), gate, state, recurrent_weight)


def _hgrn2(heads: Heads, state: Tensors, _: Tensors, recurrent_weight: float) -> Tensors:
    """HGRN2 (arXiv 2404.07904, equation 7): the key is what the forget gate lets go."""
    key = heads.wide_key
    return _gated_linear(heads, torch.sigmoid(-key), F.logsigmoid(key), state, recurrent_weight)


def _gated_linear(heads: Heads, features: Tensor, gate: Tensor, state: Tensors, recurrent_weight: float) -> Tensors:
    features, gate = heads.tokens_only(features), heads.tokens_only(gate)
    output, next_state = gated_recurrence(heads.wide_query.softmax(-1), features, heads.value, gate, state[0])
    return _beside_window(heads, output, (next_state,), state[1:], recurrent_weight)


def _gsa(heads: Heads, state: Tensors, _: Tensors, gate_normalizer: float, recurrent_weight: float) -> Tensors:
    """Gated slot attention (arXiv 2409.07146, section 3): M slots of keys and values, read by softmax over slots."""
    slot_key, slot_value, *window = state
    slots = slot_key.shape[2]
    pooled = heads.wide_key.unflatten(-1, (slots, -1)).mean(-1)  # [B, T, G, M]
    gate = heads.tokens_only(F.logsigmoid(pooled) / gate_normalizer)
    written = -torch.expm1(gate)  # 1 - exp g, without the loss of digits; 0 at padding
    scores, slot_key = gated_recurrence(heads.query, written, heads.key, gate, slot_key, read_values=True)
    output, slot_value = gated_recurrence(scores.softmax(-1), written, heads.value, gate, slot_value)
    return _beside_window(heads, output, (slot_key, slot_value), tuple(window), recurrent_weight)


def _beside_window(
    heads: Heads, recurrent: Tensor, next_state: Tensors, window: Tensors, recurrent_weight: float
) -> Tensors:
    """Mix a recurrence's output with the softmax window's."""
    windowed, *next_window = window_attention(
        heads.rotated_query, heads.rotated_key, heads.value, heads.position_ids, *window
    )
    output = recurrent_weight * recurrent.to(windowed.dtype) + (1 - recurrent_weight) * windowed
    return output, *next_state, *next_window


def _lolcats(heads: Heads, state: Tensors, maps: Tensors) -> Tensors:
    sums, normalizer, window_key, window_value = state
    query_map, key_map, window_factors = maps
    window = window_key.shape[2]
    span = join_window(heads.rotated_key, heads.value, heads.position_ids, window_key, window_value)
    output, sums, normalizer = lolcats_attention(
        heads.rotated_query,
        span,
        heads.position_ids,
        (query_map, key_map, window_factors),
        (sums, normalizer),
        window,
    )
    return output.to(heads.query.dtype), sums, normalizer, *leave_window(span, window)


def _softmax(heads: Heads, state: Tensors, _: Tensors) -> Tensors:
    return window_attention(heads.rotated_query, heads.rotated_key, heads.value, heads.position_ids, *state)


FORWARDS: dict[str, Callable[..., Tensors]] = {
    "gla": _gla,
    "hgrn2": _hgrn2,
    "gsa": _gsa,
    "lolcats": _lolcats,
    "softmax": _softmax,
}
