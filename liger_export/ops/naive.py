"""The equations, token by token: the reference for every fast implementation.

Nothing here is shared with the fast implementations. Float64 inputs give float64 results. Each attention takes a whole
sequence:

- query [B, T, H, D], key and value [B, T, G, D], as projected;
- angles [B, T, D / 2], rotary angles in radians;
- window_size W, keys in the window, the current one included;
- the mixer's options, sizes and learned tensors, by name.

It returns the output [B, T, H, D] and the final state in the order of the state table: the recurrent tensors, then the
window's rotated keys and its values, each [B, G, W, D], oldest first, zero past the length.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NAIVE_ATTENTIONS", "naive_gla_recurrence", "naive_rotary", "naive_window_attention"]

Tensors = tuple[Tensor, ...]


def naive_gla_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: Tensor,
    window_size: int,
    *,
    gate_normalizer: float,
    recurrent_weight: float,
) -> Tensors:
    """Liger-GLA: the gate is computed from the key; feature maps are softmax (arXiv 2503.01496, equations 5 to 8)."""
    gate = -torch.log1p(torch.exp(-key)) / gate_normalizer  # logsigmoid
    recurrent, state = naive_gla_recurrence(query.softmax(-1), key.softmax(-1), value, gate, _zero_state(key, value))
    window = naive_softmax_attention(query, key, value, angles, window_size)
    return _mixed(recurrent_weight, (recurrent, state), window)


def naive_hgrn2_attention(
    query: Tensor, key: Tensor, value: Tensor, angles: Tensor, window_size: int, *, recurrent_weight: float
) -> Tensors:
    """Liger-HGRN2: forget gate f = sigmoid(k), key 1 - f (arXiv 2404.07904, equation 7)."""
    gate, written = -torch.log1p(torch.exp(-key)), 1 / (1 + torch.exp(key))
    recurrent, state = naive_gla_recurrence(query.softmax(-1), written, value, gate, _zero_state(key, value))
    window = naive_softmax_attention(query, key, value, angles, window_size)
    return _mixed(recurrent_weight, (recurrent, state), window)


def naive_gsa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: Tensor,
    window_size: int,
    *,
    num_slots: int,
    gate_normalizer: float,
    recurrent_weight: float,
) -> Tensors:
    """Liger-GSA: M slots of keys and of values with the same gates; M divides D (arXiv 2409.07146, section 3).

    K_t = diag(a_t) K_{t-1} + (1 - a_t) k_t^T, V_t likewise, and o_t = V_t^T softmax(K_t q_t). Each slot's log a_t is
    computed from the mean of D / M values of the key.
    """
    means = torch.stack([part.mean(-1) for part in key.chunk(num_slots, -1)], dim=-1)  # [B, T, G, M]
    gate = -torch.log1p(torch.exp(-means)) / gate_normalizer
    slot_key = slot_value = key.new_zeros(key.shape[0], key.shape[2], num_slots, key.shape[3])  # [B, G, M, D]
    outputs = []
    for t in range(query.shape[1]):
        kept, written = gate[:, t].exp().unsqueeze(-1), -torch.expm1(gate[:, t]).unsqueeze(-1)
        slot_key = kept * slot_key + written * key[:, t].unsqueeze(-2)
        slot_value = kept * slot_value + written * value[:, t].unsqueeze(-2)
        keys, values = (_per_query_head(slots, query, 1) for slots in (slot_key, slot_value))  # [B, H, M, D]
        weights = torch.einsum("bhmd,bhd->bhm", keys, query[:, t]).softmax(-1)
        outputs.append(torch.einsum("bhm,bhmd->bhd", weights, values))
    window = naive_softmax_attention(query, key, value, angles, window_size)
    return _mixed(recurrent_weight, (torch.stack(outputs, dim=1), slot_key, slot_value), window)


def naive_lolcats_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: Tensor,
    window_size: int,
    *,
    query_map: Tensor,
    key_map: Tensor,
    window_factors: Tensor,
) -> Tensors:
    """LoLCATs, pair by pair (arXiv 2410.10254, section 3.2).

    The weight of a key is sigmoid(w_h) exp(q_t . k_i / sqrt(D) - m_t) inside the window, where m_t is the largest score
    there, and phi(q_t) . phi(k_i) before the window. The state is the sums of phi(k_i) v_i^T and of phi(k_i) over the
    keys before the window. The maps [H, D, F / 2] and the factors w [H] are learned.
    """
    query, key = naive_rotary(query, angles), naive_rotary(key, angles)
    buffers = _last_rows(key, window_size), _last_rows(value, window_size)
    keys, values = (_per_query_head(rows, query, 2) for rows in (key, value))  # [B, T, H, D]
    query_features, key_features = _hedgehog(query, query_map), _hedgehog(keys, key_map)  # [B, T, H, F]
    outputs = []
    for t in range(query.shape[1]):
        first = max(0, t + 1 - window_size)
        scores = torch.einsum("bhd,bihd->bhi", query[:, t], keys[:, first : t + 1]) / query.shape[-1] ** 0.5
        near = window_factors.sigmoid()[:, None] * torch.exp(scores - scores.amax(-1, keepdim=True))
        far = torch.einsum("bhf,bihf->bhi", query_features[:, t], key_features[:, :first])
        weights = torch.cat((far, near), dim=-1)
        weighted = torch.einsum("bhi,bihd->bhd", weights, values[:, : t + 1])
        outputs.append(weighted / weights.sum(-1, keepdim=True))
    older = slice(max(0, query.shape[1] - window_size))
    sums = torch.einsum("bihf,bihd->bhfd", key_features[:, older], values[:, older])
    return torch.stack(outputs, dim=1), sums, key_features[:, older].sum(1), *buffers


def naive_softmax_attention(query: Tensor, key: Tensor, value: Tensor, angles: Tensor, window_size: int) -> Tensors:
    """The base model's own attention with rotary embedding (arXiv 2104.09864), in a bounded window."""
    query, key = naive_rotary(query, angles), naive_rotary(key, angles)
    output = naive_window_attention(query, key, value, window_size)
    return output, _last_rows(key, window_size), _last_rows(value, window_size)


NAIVE_ATTENTIONS: dict[str, Callable[..., Tensors]] = {
    "gla": naive_gla_attention,
    "hgrn2": naive_hgrn2_attention,
    "gsa": naive_gsa_attention,
    "lolcats": naive_lolcats_attention,
    "softmax": naive_softmax_attention,
}


def naive_gla_recurrence(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp g_t) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t (GLA, arXiv 2312.06635, section 4).

    Args:
        query: [B, T, H, D], feature map applied.
        key: [B, T, G, D], feature map applied.
        value: [B, T, G, D].
        gate: [B, T, G, D], log of the decay of each key dimension.
        state: [B, G, D (key), D (value)].

    Returns:
        Output [B, T, H, D] and the state after the last token.
    """
    outputs = []
    for t in range(query.shape[1]):
        state = gate[:, t].exp().unsqueeze(-1) * state + torch.einsum("bgk,bgv->bgkv", key[:, t], value[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, t], _per_query_head(state, query, 1)))
    return torch.stack(outputs, dim=1), state


def naive_window_attention(query: Tensor, key: Tensor, value: Tensor, window_size: int) -> Tensor:
    """softmax(q_t . k / sqrt(D)) over the last ``window_size`` keys, the current one included, times v.

    Args:
        query: [B, T, H, D], rotated.
        key: [B, T, G, D], rotated.
        value: [B, T, G, D].
        window_size: W.
    """
    keys, values = (_per_query_head(rows, query, 2) for rows in (key, value))  # [B, T, H, D]
    outputs = []
    for t in range(query.shape[1]):
        seen = slice(max(0, t + 1 - window_size), t + 1)
        scores = torch.einsum("bhd,bihd->bhi", query[:, t], keys[:, seen]) / query.shape[-1] ** 0.5
        outputs.append(torch.einsum("bhi,bihd->bhd", scores.softmax(-1), values[:, seen]))
    return torch.stack(outputs, dim=1)


def naive_rotary(hidden_states: Tensor, angles: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + D/2}) by its angle (RoPE, arXiv 2104.09864, in Llama's half-split order).

    Args:
        hidden_states: [B, T, heads, D].
        angles: [B, T, D / 2], position times inverse frequency, in radians.
    """
    half = hidden_states.shape[-1] // 2
    rotated = hidden_states.clone()
    for i in range(half):
        cos, sin = angles[..., i].cos()[:, :, None], angles[..., i].sin()[:, :, None]
        first, second = hidden_states[..., i], hidden_states[..., i + half]
        rotated[..., i] = first * cos - second * sin
        rotated[..., i + half] = second * cos + first * sin
    return rotated


def _hedgehog(rows: Tensor, feature_map: Tensor) -> Tensor:
    """phi(x) = concat(softmax(x A_h), softmax(-x A_h)), at least 1e-12: [B, T, H, D] to [B, T, H, F]."""
    mapped = torch.einsum("bthd,hdf->bthf", rows, feature_map)
    return torch.cat((mapped.softmax(-1), (-mapped).softmax(-1)), dim=-1).clamp(min=1e-12)


def _per_query_head(shared: Tensor, query: Tensor, dim: int) -> Tensor:
    """Repeat the G key/value heads in ``dim`` to H: query head h reads key/value head h * G // H."""
    return shared.repeat_interleave(query.shape[2] // shared.shape[dim], dim)


def _mixed(recurrent_weight: float, recurrence: Tensors, window: Tensors) -> Tensors:
    """The weighted mean of both outputs, which come first, followed by both states."""
    output = recurrent_weight * recurrence[0] + (1 - recurrent_weight) * window[0]
    return output, *recurrence[1:], *window[1:]


def _zero_state(key: Tensor, value: Tensor) -> Tensor:
    return key.new_zeros(key.shape[0], key.shape[2], key.shape[3], value.shape[3])


def _last_rows(rows: Tensor, window_size: int) -> Tensor:
    """[B, T, G, D] to [B, G, W, D]: the last W tokens' rows, then zeros."""
    kept = rows[:, -window_size:].transpose(1, 2)
    return F.pad(kept, (0, 0, 0, window_size - kept.shape[2]))
