"""LoLCATs attention: a softmax window and linear attention over all older keys, under one denominator.

Reference: ``naive_lolcats_attention``. Per query head h with its learned maps A_h and window factor w_h
(arXiv 2410.10254, section 3.2):

    y = (sum_window a_i v_i + sum_older phi(q).phi(k_i) v_i) / (sum_window a_i + sum_older phi(q).phi(k_i))
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from liger_export.config import LigerConfig
from liger_export.ops.window import DOCUMENT, Blocks, Span

__all__ = ["FEATURE_FLOOR", "features", "initial_lolcats_parameters", "lolcats_attention"]

FEATURE_FLOOR = 1e-12
WINDOW_FACTOR = -2.1972245773362196  # its sigmoid is 0.1


def initial_lolcats_parameters(config: LigerConfig) -> dict[str, Tensor]:
    """Start values of the learned tensors: identity maps, and window factors whose sigmoid is 0.1.

    Returns:
        query_map and key_map, each [H, D, F / 2], and window_factors [H], float32.
    """
    identity = torch.eye(config.head_dim, config.feature_dim).repeat(config.num_attention_heads, 1, 1)
    factors = torch.full((config.num_attention_heads,), WINDOW_FACTOR)
    return {"query_map": identity, "key_map": identity.clone(), "window_factors": factors}


def features(heads: Tensor, feature_map: Tensor) -> Tensor:
    """phi(x) = concat(softmax(x A), softmax(-x A)), at least ``FEATURE_FLOOR``: [B, H, T, F], F = 2 * feature_dim.

    Args:
        heads: [B, H, T, D].
        feature_map: [H, D, F / 2].
    """
    mapped = heads @ feature_map
    return torch.cat((mapped.softmax(-1), (-mapped).softmax(-1)), dim=-1).clamp(min=FEATURE_FLOOR)


def lolcats_attention(
    query: Tensor,
    span: Span,
    maps: tuple[Tensor, Tensor, Tensor],
    state: tuple[Tensor, Tensor],
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from T new tokens, in blocks: pairwise to the keys in a block's span, through the state to older keys.

    Args:
        query: [B, T, H, D], rotated.
        span: keys, rotated, and values of the window and the call.
        maps: query and key map, each [H, D, F / 2], and window factors [H].
        state: S [B, H, F, D] and z [B, H, F], sums over the keys that have left the window.
        window: W.

    Returns:
        Output [B, T, H, D], and the two sums after the last token, all in the dtype of the state.
    """
    length, num_queries_per_kv = query.shape[1], query.shape[2] // span.keys.shape[1]
    query_map, key_map, window_factors = (learned.to(state[0].dtype) for learned in maps)
    query = query.transpose(1, 2).to(state[0].dtype)  # [B, H, T, D]
    keys, values = (
        rows.to(state[0].dtype).repeat_interleave(num_queries_per_kv, 1) for rows in (span.keys, span.values)
    )
    key_features = features(keys, key_map) * (span.positions >= 0)[:, None, :, None]  # [B, H, W + T, F]

    blocks = Blocks(length, window)
    query_features = blocks.queries(features(query, query_map))  # [B, H, N, C, F]
    distance = blocks.distances(span)[:, None]  # [B, 1, N, C, C + W]
    in_window, is_older = (distance >= 0) & (distance < window), (distance >= window) & (distance < DOCUMENT // 2)

    scores = blocks.queries(query) @ blocks.spans(keys).transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~in_window, torch.finfo(scores.dtype).min)
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp() * in_window
    linear = (query_features @ blocks.spans(key_features).transpose(-1, -2)) * is_older
    weights = window_factors.sigmoid()[:, None, None, None] * exponentials + linear  # [B, H, N, C, C + W]

    entering, sums, normalizers = _entering(key_features, values, span.documents, state, blocks)
    reading = query_features * _continues(span.documents[:, window:], entering, blocks)
    numerator = weights @ blocks.spans(values) + reading @ sums
    denominator = weights.sum(-1) + (reading @ normalizers.unsqueeze(-1)).squeeze(-1)
    is_token = in_window.any(-1)  # every token sees itself
    output = numerator / torch.where(is_token, denominator, 1).unsqueeze(-1)
    output = blocks.joined(torch.where(is_token.unsqueeze(-1), output, 0)).transpose(1, 2)
    return output, *_leaving(key_features, values, span, state)


def _entering(
    key_features: Tensor, values: Tensor, documents: Tensor, state: tuple[Tensor, Tensor], blocks: Blocks
) -> tuple[Tensor, Tensor, Tensor]:
    """The document of the last key before each block's span, [B, N], and the sums over its keys up to there.

    The sums are [B, H, N, F, D] and [B, H, N, F].
    """
    count, size = -(-blocks.length // blocks.size), blocks.size
    before = (count - 1) * size  # rows before the last block's span; n * size rows precede that of block n
    chunks = [rows[:, :, :before].unflatten(2, (count - 1, size)) for rows in (key_features, values)]
    numbers = documents[:, :before].unflatten(1, (count - 1, size))  # [B, N - 1, C]
    entering = F.pad(numbers[:, :, -1], (1, 0))  # [B, N]
    kept = chunks[0] * (numbers == entering[:, 1:, None])[:, None, :, :, None]
    added = torch.cat((state[0].unsqueeze(2), kept.transpose(-1, -2) @ chunks[1]), dim=2)  # [B, H, N, F, D]
    normalizers = torch.cat((state[1].unsqueeze(2), kept.sum(-2)), dim=2)  # [B, H, N, F]
    belongs = (entering[:, :, None] == entering[:, None, :]).tril()[:, None].to(added.dtype)  # [B, 1, N, N]
    return entering, (belongs @ added.flatten(3)).view_as(added), belongs @ normalizers


def _continues(documents: Tensor, entering: Tensor, blocks: Blocks) -> Tensor:
    """Tell which queries belong to the document that enters their block: bool [B, 1, N, C, 1].

    Args:
        documents: [B, T], of the queries.
        entering: [B, N], from ``_entering``.
        blocks: T queries in blocks.
    """
    numbers = F.pad(documents, (0, blocks.padding)).unflatten(1, (-1, blocks.size))
    continues: Tensor = (numbers == entering[:, :, None])[:, None, :, :, None]
    return continues


def _leaving(key_features: Tensor, values: Tensor, span: Span, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The last document's sums after the call: the first ``added`` rows of the span have left the window."""
    has_left = torch.arange(key_features.shape[2], device=span.added.device) < span.added[:, None]  # [B, W + T]
    last = span.documents[:, -1:]
    left = key_features * (has_left & (span.documents == last))[:, None, :, None]
    kept = (last == 0)[:, :, None].to(left.dtype)  # [B, 1, 1]
    return state[0] * kept[..., None] + left.transpose(-1, -2) @ values, state[1] * kept + left.sum(2)
