"""LoLCATs attention: a softmax window and linear attention over all older keys, under one denominator.

Reference: ``naive_lolcats_attention``. Per query head h with its learned maps A_h and window factor w_h
(arXiv 2410.10254, section 3.2):

    y = (sum_window a_i v_i + sum_older phi(q).phi(k_i) v_i) / (sum_window a_i + sum_older phi(q).phi(k_i))
"""

import torch
from torch import Tensor

from liger_export.config import LigerConfig
from liger_export.ops.window import Blocks, Span

__all__ = ["FEATURE_FLOOR", "features", "initial_lolcats_parameters", "lolcats_attention"]

FEATURE_FLOOR = 1e-12
WINDOW_FACTOR = -2.1972245773362196  # its sigmoid is 0.1


def initial_lolcats_parameters(config: LigerConfig) -> dict[str, Tensor]:
    """Learned tensors before training: maps that leave a head as it is, and window factors of 0.1.

    Returns:
        query_map and key_map, each [H, D, F / 2], and window_factors [H], float32.
    """
    identity = torch.eye(config.head_dim, config.feature_dim).repeat(config.num_attention_heads, 1, 1)
    factors = torch.full((config.num_attention_heads,), WINDOW_FACTOR)
    return {"query_map": identity, "key_map": identity.clone(), "window_factors": factors}


def features(heads: Tensor, feature_map: Tensor) -> Tensor:
    """phi(x) = concat(softmax(x A), softmax(-x A)), clamped from below: positive, F = 2 * feature_dim wide.

    Args:
        heads: [B, H, T, D].
        feature_map: [H, D, F / 2].
    """
    mapped = heads @ feature_map
    return torch.cat((mapped.softmax(-1), (-mapped).softmax(-1)), dim=-1).clamp(min=FEATURE_FLOOR)


def lolcats_attention(
    query: Tensor,
    span: Span,
    position_ids: Tensor,
    maps: tuple[Tensor, Tensor, Tensor],
    state: tuple[Tensor, Tensor],
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from T new tokens, blockwise: inside a block pair by pair, to what lies before through the state.

    Args:
        query: [B, T, H, D], rotated.
        span: the window's and the call's keys, rotated, and values.
        position_ids: int64 [B, T].
        maps: query and key map, each [H, D, F / 2], and window factors [H].
        state: S [B, H, F, D] and z [B, H, F], sums over the keys that have left the window.
        window: W.

    Returns:
        Output [B, T, H, D], and the two sums after the last token, all in the dtype of the state.
    """
    length, repeats = query.shape[1], query.shape[2] // span.keys.shape[1]
    query_map, key_map, window_factors = (learned.to(state[0].dtype) for learned in maps)
    query = query.transpose(1, 2).to(state[0].dtype)  # [B, H, T, D]
    keys, values = (rows.to(state[0].dtype).repeat_interleave(repeats, 1) for rows in (span.keys, span.values))
    key_features = features(keys, key_map) * (span.positions >= 0)[:, None, :, None]  # [B, H, W + T, F]

    blocks = Blocks(length, window)
    sums, normalizers = _entering(key_features, values, state, blocks)  # [B, H, N, F, D], [B, H, N, F]
    query_features = blocks.queries(features(query, query_map))  # [B, H, N, C, F]
    distance = blocks.distances(position_ids, span.positions)[:, None]  # [B, 1, N, C, C + W]
    in_window, is_older = (distance >= 0) & (distance < window), distance >= window

    scores = blocks.queries(query) @ blocks.spans(keys).transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~in_window, torch.finfo(scores.dtype).min)
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp() * in_window
    linear = (query_features @ blocks.spans(key_features).transpose(-1, -2)) * is_older
    weights = window_factors.sigmoid()[:, None, None, None] * exponentials + linear  # [B, H, N, C, C + W]

    numerator = weights @ blocks.spans(values) + query_features @ sums
    denominator = weights.sum(-1) + (query_features @ normalizers.unsqueeze(-1)).squeeze(-1)
    is_token = in_window.any(-1)  # a token sees itself
    output = numerator / torch.where(is_token, denominator, 1).unsqueeze(-1)
    output = blocks.joined(torch.where(is_token.unsqueeze(-1), output, 0)).transpose(1, 2)
    return output, *_leaving(key_features, values, state, span.added)


def _entering(
    key_features: Tensor, values: Tensor, state: tuple[Tensor, Tensor], blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """The sums over all keys before each block's span."""
    count, size = -(-blocks.length // blocks.size), blocks.size
    before = (count - 1) * size  # rows that precede the last block's span; block n's are preceded by n * size
    chunks = [rows[:, :, :before].unflatten(2, (count - 1, size)) for rows in (key_features, values)]
    added = chunks[0].transpose(-1, -2) @ chunks[1]  # [B, H, N - 1, F, D]
    sums = torch.cat((state[0].unsqueeze(2), added), dim=2).cumsum(2)
    return sums, torch.cat((state[1].unsqueeze(2), chunks[0].sum(-2)), dim=2).cumsum(2)


def _leaving(
    key_features: Tensor, values: Tensor, state: tuple[Tensor, Tensor], added: Tensor
) -> tuple[Tensor, Tensor]:
    """The sums after the call: the first ``added`` rows of the span have left the window."""
    has_left = torch.arange(key_features.shape[2], device=added.device) < added[:, None]  # [B, W + T]
    left = key_features * has_left[:, None, :, None]
    return state[0] + left.transpose(-1, -2) @ values, state[1] + left.sum(2)
