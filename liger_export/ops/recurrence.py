"""A fast gated recurrence S_t = diag(exp g_t) S_{t-1} + k_t v_t^T.

Its state is read along the keys (o_t = S_t^T q_t, gated linear attention) or along the values (o_t = S_t q_t, the first
pass of gated slot attention). Each key/value head has one state, shared by its query heads. References:
``naive_gla_recurrence`` and ``naive_gsa_attention``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gated_recurrence"]

CHUNK = 16  # tokens that run in parallel, with the decay between each pair of them
CHUNKS_PER_PASS = 32  # chunks whose states are computed in parallel


def gated_recurrence(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor, *, read_values: bool = False
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over T tokens from any state: as a step if T is 1, otherwise in chunks.

    Args:
        query: [B, T, H, K], feature map applied; [B, T, H, V] if ``read_values``.
        key: [B, T, G, K], feature map applied.
        value: [B, T, G, V].
        gate: [B, T, G, K], log decays, at most 0; minus infinity where nothing is left of the past.
        state: [B, G, K, V].
        read_values: multiply the query by the state's values instead of its keys.

    Returns:
        Output [B, T, H, V], or [B, T, H, K] if ``read_values``, and the state after the last token, both in the
        dtype of ``state``.
    """
    query, key, value, gate = (tensor.to(state.dtype) for tensor in (query, key, value, gate))
    run = _step if query.shape[1] == 1 else _chunked
    return run(query, key, value, gate, state, read_values)


def _step(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor, read_values: bool
) -> tuple[Tensor, Tensor]:
    num_key_value_heads = key.shape[2]
    state = gate[:, 0].exp().unsqueeze(-1) * state + key[:, 0].unsqueeze(-1) * value[:, 0].unsqueeze(-2)
    query = query[:, 0].unflatten(1, (num_key_value_heads, -1))  # [B, G, H/G, K or V]
    output = query @ (state.transpose(-1, -2) if read_values else state)
    return output.flatten(1, 2).unsqueeze(1), state


def _chunked(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, state: Tensor, read_values: bool
) -> tuple[Tensor, Tensor]:
    """Run many tokens: all chunks in parallel, then a pass over the chunks' states.

    The chunkwise form of arXiv 2312.06635, section 4.2. The decay between two tokens of a chunk is the exponential of
    the sum of the gates between them, not a difference or a ratio of cumulative values, so strong gates neither
    overflow nor cancel.
    """
    length, num_key_value_heads = query.shape[1], key.shape[2]
    query = _into_chunks(query).unflatten(1, (num_key_value_heads, -1))  # [B, G, H/G, N, C, K or V]
    key, value, gate = (_into_chunks(tensor) for tensor in (key, value, gate))  # [B, G, N, C, K or V]
    pairwise = _sums_between(gate)  # [B, G, N, C (to), C (from), K]
    cumulative = gate.cumsum(-2)

    added = (key * pairwise[..., -1, :, :].exp()).transpose(-1, -2) @ value  # [B, G, N, K, V]
    entering, state = _pass_over_chunks(cumulative[..., -1, :], added, state)
    entering = entering.unsqueeze(2)  # [B, G, 1, N, K, V]
    decay_since_entry = cumulative.exp().unsqueeze(2)

    is_visible = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=query.device).tril().unsqueeze(-1)
    decayed_keys = pairwise.exp() * is_visible * key.unsqueeze(-3)  # [B, G, N, C (query), C (key), K]
    if read_values:
        before = decay_since_entry * (query @ entering.transpose(-1, -2))
        products = query @ value.unsqueeze(2).transpose(-1, -2)  # [B, G, H/G, N, C, C]
        output = before + torch.einsum("bgrnij,bgnijk->bgrnik", products, decayed_keys)
    else:
        before = (query * decay_since_entry) @ entering
        scores = torch.einsum("bgrnik,bgnijk->bgrnij", query, decayed_keys)
        output = before + scores @ value.unsqueeze(2)
    return output.flatten(3, 4).flatten(1, 2).transpose(1, 2)[:, :length], state


def _sums_between(gate: Tensor) -> Tensor:
    """Sums of the gates after "from" through "to": [..., C, K] to [..., C (to), C (from), K]; 0 if not later."""
    size = gate.shape[-2]
    is_after = torch.ones(size, size, dtype=torch.bool, device=gate.device).tril(-1).unsqueeze(-1)
    return torch.where(is_after, gate.unsqueeze(-2), 0).cumsum(-3)


def _pass_over_chunks(gate: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk, [B, G, N, K, V], and the state after the last chunk.

    Groups of ``CHUNKS_PER_PASS`` chunks are computed in parallel, with the decays between each pair of chunks: one
    operation per chunk would leave a GPU idle.

    Args:
        gate: [B, G, N, K], each chunk's sum of gates.
        added: [B, G, N, K, V], each chunk's contribution to the state at its end.
        state: [B, G, K, V], before the first chunk.
    """
    entering = []
    for gates, additions in zip(gate.split(CHUNKS_PER_PASS, 2), added.split(CHUNKS_PER_PASS, 2), strict=True):
        between = _sums_between(gates)  # [B, G, N (to), N (from), K]
        is_past = torch.ones(between.shape[2:4], dtype=torch.bool, device=gate.device).tril().unsqueeze(-1)
        leaving = torch.einsum("bgnmk,bgmkv->bgnkv", between.exp() * is_past, additions)
        leaving = leaving + gates.cumsum(2).exp().unsqueeze(-1) * state.unsqueeze(2)  # the state after each chunk
        entering.append(torch.cat((state.unsqueeze(2), leaving[:, :, :-1]), dim=2))
        state = leaving[:, :, -1]
    return torch.cat(entering, dim=2), state


def _into_chunks(tensor: Tensor) -> Tensor:
    """Split [B, T, heads, D] into [B, heads, T / C, C, D]. Zeros are appended to T; they do not change the state."""
    padding = -tensor.shape[1] % CHUNK
    chunks: Tensor = F.pad(tensor, (0, 0, 0, 0, 0, padding)).transpose(1, 2).unflatten(2, (-1, CHUNK))
    return chunks
