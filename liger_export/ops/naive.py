"""The equations written out, one token at a time: the reference every fast path is tested against.

Nothing here is shared with the fast paths. Give float64 tensors to get a float64 answer.
"""

import torch
from torch import Tensor

__all__ = ["NAIVE_ATTENTIONS", "naive_gla_recurrence", "naive_rotary", "naive_window_attention"]


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


def naive_gla_recurrence(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp g_t) S_{t-1} + k_t v_t^T and o_t = q_t^T S_t (GLA, arXiv 2312.06635, section 4).

    Args:
        query: [B, T, H, D], feature map applied.
        key: [B, T, G, D], feature map applied.
        value: [B, T, G, D].
        gate: [B, T, G, D], log of the decay of each key dimension.
        state: [B, G, D (key), D (value)].

    Returns:
        Output [B, T, H, D] and the state after the last token.
    """
    batch, length, heads, _ = query.shape
    repeats = heads // key.shape[2]
    output, states = query.new_empty(batch, length, heads, value.shape[3]), []
    for b in range(batch):
        for g in range(key.shape[2]):
            matrix = state[b, g]
            for t in range(length):
                matrix = gate[b, t, g].exp()[:, None] * matrix + torch.outer(key[b, t, g], value[b, t, g])
                for h in range(g * repeats, (g + 1) * repeats):
                    output[b, t, h] = query[b, t, h] @ matrix
            states.append(matrix)
    return output, torch.stack(states).view_as(state)


def naive_window_attention(query: Tensor, key: Tensor, value: Tensor, window_size: int) -> Tensor:
    """softmax(q_t . k / sqrt(D)) over the last ``window_size`` keys, the current one included, times v.

    Args:
        query: [B, T, H, D], rotated.
        key: [B, T, G, D], rotated.
        value: [B, T, G, D].
    """
    batch, length, heads, head_dim = query.shape
    groups = heads // key.shape[2]
    output = torch.empty_like(query)
    for b in range(batch):
        for t in range(length):
            first = max(0, t + 1 - window_size)
            for h in range(heads):
                keys, values = key[b, first : t + 1, h // groups], value[b, first : t + 1, h // groups]
                weights = torch.softmax(keys @ query[b, t, h] / head_dim**0.5, dim=0)
                output[b, t, h] = weights @ values
    return output


def naive_gla_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: Tensor,
    window_size: int,
    *,
    gate_normalizer: float = 16.0,
    recurrent_weight: float = 0.5,
) -> Tensor:
    """Liger-GLA attention over a whole sequence (arXiv 2503.01496, equations 5 to 8).

    Args:
        query: [B, T, H, D], as projected.
        key: [B, T, G, D], as projected.
        value: [B, T, G, D].
        angles: [B, T, D / 2], rotary angles.
        window_size: keys in the window.
        gate_normalizer: divisor of the log gate.
        recurrent_weight: share of the recurrence.
    """
    gate = -torch.log1p(torch.exp(-key)) / gate_normalizer
    state = key.new_zeros(key.shape[0], key.shape[2], key.shape[3], value.shape[3])
    recurrent, _ = naive_gla_recurrence(query.softmax(-1), key.softmax(-1), value, gate, state)
    return _beside_window(recurrent, query, key, value, angles, window_size, recurrent_weight)


def naive_hgrn2_attention(
    query: Tensor, key: Tensor, value: Tensor, angles: Tensor, window_size: int, *, recurrent_weight: float = 0.5
) -> Tensor:
    """Liger-HGRN2 attention: forget gate f = sigmoid(k), key 1 - f (arXiv 2404.07904, equation 7).

    Arguments as ``naive_gla_attention``.
    """
    forget = 1 / (1 + torch.exp(-key))
    state = key.new_zeros(key.shape[0], key.shape[2], key.shape[3], value.shape[3])
    recurrent, _ = naive_gla_recurrence(query.softmax(-1), 1 - forget, value, forget.log(), state)
    return _beside_window(recurrent, query, key, value, angles, window_size, recurrent_weight)


def naive_gsa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: Tensor,
    window_size: int,
    *,
    num_slots: int,
    gate_normalizer: float = 16.0,
    recurrent_weight: float = 0.5,
) -> Tensor:
    """Liger-GSA attention: M slots of keys and of values, written at one rate (arXiv 2409.07146, section 3).

    Arguments as ``naive_gla_attention``, and ``num_slots`` M, a divisor of D.
    """
    batch, length, heads, head_dim = query.shape
    repeats, pooled = heads // key.shape[2], head_dim // num_slots
    recurrent = torch.empty_like(query)
    for b in range(batch):
        for g in range(key.shape[2]):
            slot_key = slot_value = key.new_zeros(num_slots, head_dim)
            for t in range(length):
                means = torch.stack([key[b, t, g, m * pooled : (m + 1) * pooled].mean() for m in range(num_slots)])
                kept = (1 / (1 + torch.exp(-means))) ** (1 / gate_normalizer)  # exp of logsigmoid / normalizer
                slot_key = kept[:, None] * slot_key + torch.outer(1 - kept, key[b, t, g])
                slot_value = kept[:, None] * slot_value + torch.outer(1 - kept, value[b, t, g])
                for h in range(g * repeats, (g + 1) * repeats):
                    recurrent[b, t, h] = slot_value.T @ torch.softmax(slot_key @ query[b, t, h], dim=0)
    return _beside_window(recurrent, query, key, value, angles, window_size, recurrent_weight)


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
) -> Tensor:
    """LoLCATs attention, every pair of positions written out (arXiv 2410.10254, section 3.2).

    Arguments as ``naive_gla_attention``, and the learned ``query_map`` and ``key_map`` [H, D, F / 2] and
    ``window_factors`` [H].
    """
    batch, length, heads, head_dim = query.shape
    query, key = naive_rotary(query, angles), naive_rotary(key, angles)
    output = torch.empty_like(query)
    for b in range(batch):
        for h in range(heads):
            keys, values = key[b, :, h * key.shape[2] // heads], value[b, :, h * key.shape[2] // heads]
            for t in range(length):
                features = _hedgehog(query[b, t, h], query_map[h])
                start = max(0, t + 1 - window_size)
                scores = torch.stack([query[b, t, h] @ keys[i] / head_dim**0.5 for i in range(start, t + 1)])
                near = torch.sigmoid(window_factors[h]) * torch.exp(scores - scores.max())
                far = [features @ _hedgehog(keys[i], key_map[h]) for i in range(start)]
                weights = torch.cat((torch.stack(far), near)) if far else near
                output[b, t, h] = weights @ values[: t + 1] / weights.sum()
    return output


def naive_softmax_attention(query: Tensor, key: Tensor, value: Tensor, angles: Tensor, window_size: int) -> Tensor:
    """The base's own attention in a bounded window. Arguments as ``naive_gla_attention``."""
    return naive_window_attention(naive_rotary(query, angles), naive_rotary(key, angles), value, window_size)


def _hedgehog(vector: Tensor, feature_map: Tensor) -> Tensor:
    mapped = vector @ feature_map
    return torch.cat((torch.softmax(mapped, 0), torch.softmax(-mapped, 0))).clamp(min=1e-12)


def _beside_window(
    recurrent: Tensor, query: Tensor, key: Tensor, value: Tensor, angles: Tensor, window_size: int, weight: float
) -> Tensor:
    window = naive_softmax_attention(query, key, value, angles, window_size)
    return weight * recurrent + (1 - weight) * window


NAIVE_ATTENTIONS = {
    "gla": naive_gla_attention,
    "hgrn2": naive_hgrn2_attention,
    "gsa": naive_gsa_attention,
    "lolcats": naive_lolcats_attention,
    "softmax": naive_softmax_attention,
}
