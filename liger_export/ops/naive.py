"""The equations written out, one token at a time: the reference every fast path is tested against.

Nothing here is shared with the fast paths. Give float64 tensors to get a float64 answer.
"""

import torch
from torch import Tensor

__all__ = ["naive_gla_attention", "naive_gla_recurrence", "naive_rotary", "naive_window_attention"]


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
    groups = heads // key.shape[2]
    output = torch.empty_like(query)
    state = state.clone()
    for b in range(batch):
        for t in range(length):
            for g in range(key.shape[2]):
                decay = gate[b, t, g].exp()
                state[b, g] = decay[:, None] * state[b, g] + torch.outer(key[b, t, g], value[b, t, g])
            for h in range(heads):
                output[b, t, h] = query[b, t, h] @ state[b, h // groups]
    return output, state


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
    query: Tensor, key: Tensor, value: Tensor, angles: Tensor, window_size: int, gate_normalizer: float
) -> Tensor:
    """Liger-GLA attention over a whole sequence: half recurrence, half window (arXiv 2503.01496, equation 8).

    Args:
        query: [B, T, H, D], as projected.
        key: [B, T, G, D], as projected.
        value: [B, T, G, D].
        angles: [B, T, D / 2], rotary angles.
    """
    gate = -torch.log1p(torch.exp(-key)) / gate_normalizer
    state = key.new_zeros(key.shape[0], key.shape[2], key.shape[3], value.shape[3])
    recurrent, _ = naive_gla_recurrence(query.softmax(-1), key.softmax(-1), value, gate, state)
    window = naive_window_attention(naive_rotary(query, angles), naive_rotary(key, angles), value, window_size)
    return 0.5 * recurrent + 0.5 * window
