"""The gated recurrence S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, o_t = q_t^T S_t, in forms that run fast.

Reference: ``naive_gla_recurrence``. The state exists once per key/value head; query heads share it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["chunked_recurrence", "gated_recurrence", "step_recurrence"]

CHUNK = 16


def gated_recurrence(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence over T tokens from any state, in the form that suits T.

    Args:
        query: [B, T, H, D], feature map applied.
        key: [B, T, G, D], feature map applied.
        value: [B, T, G, D].
        gate: [B, T, G, D], log decays, at most 0.
        state: [B, G, D (key), D (value)].

    Returns:
        Output [B, T, H, D] and the state after the last token, both in the dtype of ``state``.
    """
    query, key, value, gate = (tensor.to(state.dtype) for tensor in (query, key, value, gate))
    form = step_recurrence if query.shape[1] == 1 else chunked_recurrence
    return form(query, key, value, gate, state)


def step_recurrence(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token. Arguments as ``gated_recurrence`` with T = 1."""
    groups = key.shape[2]
    state = gate[:, 0].exp().unsqueeze(-1) * state + key[:, 0].unsqueeze(-1) * value[:, 0].unsqueeze(-2)
    output = query[:, 0].unflatten(1, (groups, -1)) @ state  # [B, G, H/G, D]
    return output.flatten(1, 2).unsqueeze(1), state


def chunked_recurrence(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Many tokens: chunks of 16 in parallel, then one pass over the chunks' states.

    The chunkwise form of arXiv 2312.06635, section 4.2, with the decay between each pair of a chunk's tokens
    summed from the gates between them, not taken as a difference or a ratio: the strongest gates neither
    overflow nor cancel. Arguments as ``gated_recurrence``.
    """
    length, groups = query.shape[1], key.shape[2]
    query = _into_chunks(query).unflatten(1, (groups, -1))  # [B, G, H/G, N, C, D]
    key, value, gate = (_into_chunks(tensor) for tensor in (key, value, gate))  # [B, G, N, C, D]
    ones = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=query.device)
    is_after, is_visible = ones.tril(-1).unsqueeze(-1), ones.tril().unsqueeze(-1)  # [C (to), C (from), 1]
    pairwise = torch.where(is_after, gate.unsqueeze(-2), 0).cumsum(-3)  # [B, G, N, C, C, D]: gates of (from, to]
    cumulative = gate.cumsum(-2)
    total = cumulative[..., -1:, :]

    added = (key * pairwise[..., -1, :, :].exp()).transpose(-1, -2) @ value  # [B, G, N, D, D]
    decays = total.exp().transpose(-1, -2)  # [B, G, N, D, 1]
    entering = []
    for decay, addition in zip(decays.unbind(2), added.unbind(2), strict=True):
        entering.append(state)
        state = decay * state + addition
    before = (query * cumulative.exp().unsqueeze(2)) @ torch.stack(entering, dim=2).unsqueeze(2)

    decayed_keys = pairwise.exp() * is_visible * key.unsqueeze(-3)  # [B, G, N, C (query), C (key), D]
    scores = torch.einsum("bgrnid,bgnijd->bgrnij", query, decayed_keys)
    output = before + scores @ value.unsqueeze(2)
    return output.flatten(3, 4).flatten(1, 2).transpose(1, 2)[:, :length], state


def _into_chunks(tensor: Tensor) -> Tensor:
    """[B, T, heads, D] to [B, heads, T / C, C, D]; zeros appended to T leave the state as it is."""
    padding = -tensor.shape[1] % CHUNK
    chunks: Tensor = F.pad(tensor, (0, 0, 0, 0, 0, padding)).transpose(1, 2).unflatten(2, (-1, CHUNK))
    return chunks
