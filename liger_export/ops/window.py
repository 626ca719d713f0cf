"""Softmax attention over the last W keys, and the buffer of W rows that carries it from call to call.

Reference: ``naive_window_attention``. In the buffer [B, G, W, D] rows are oldest first; rows past the
sequence's length are zero on the way out and never read on the way in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rotate", "window_attention"]

NO_POSITION = -(2**40)  # further than any window from every real position


def rotate(hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in Llama's half-split order; computed in the dtype of ``cos``, returned in the input's.

    Args:
        hidden_states: [B, T, heads, D].
        cos: [B, T, D / 2].
        sin: [B, T, D / 2].
    """
    first, second = hidden_states.to(cos.dtype).chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(hidden_states.dtype)


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, window_key: Tensor, window_value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from T new tokens to the window, blockwise, and move the window on.

    Args:
        query: [B, T, H, D], rotated.
        key: [B, T, G, D], rotated.
        value: [B, T, G, D].
        position_ids: int64 [B, T], consecutive within a row; -1 marks padding, which may only end a row.
        window_key: [B, G, W, D], the past keys.
        window_value: [B, G, W, D], the past values.

    Returns:
        Output [B, T, H, D] (zero at padding), and the window's keys and values after the last token.
    """
    window = window_key.shape[2]
    is_token = position_ids >= 0  # [B, T]
    seen = torch.where(is_token[:, 0], position_ids[:, 0], 0)  # [B], tokens before this call

    keys = torch.cat((_newest_last(window_key, seen), key.transpose(1, 2)), dim=2)  # [B, G, W + T, D]
    values = torch.cat((_newest_last(window_value, seen), value.transpose(1, 2)), dim=2)
    past_positions = seen[:, None] + torch.arange(-window, 0, device=seen.device)  # [B, W]
    key_positions = torch.cat((past_positions, position_ids), dim=1)
    key_positions = torch.where(key_positions >= 0, key_positions, NO_POSITION)

    output = _blockwise(query, keys, values, position_ids, key_positions, window)
    output = torch.where(is_token[:, :, None, None], output, 0)

    added = is_token.sum(1)
    held = (seen + added).clamp(max=window)
    source = (window + added - held)[:, None] + torch.arange(window, device=seen.device)  # [B, W]
    filled = torch.arange(window, device=seen.device) < held[:, None]
    return output, _take_rows(keys, source, filled), _take_rows(values, source, filled)


def _newest_last(buffer: Tensor, seen: Tensor) -> Tensor:
    """Shift a buffer that is not full yet so that its newest row stands last; zero what is not a row."""
    window = buffer.shape[2]
    held = seen.clamp(max=window)
    source = torch.arange(window, device=seen.device) - (window - held)[:, None]  # [B, W]
    return _take_rows(buffer, source, source >= 0)


def _take_rows(rows: Tensor, source: Tensor, filled: Tensor) -> Tensor:
    """Gather rows [B, G, N, D] by index [B, W]; zero where ``filled`` [B, W] is false."""
    index = source.clamp(0, rows.shape[2] - 1)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
    return torch.where(filled[:, None, :, None], rows.gather(2, index), 0)


def _blockwise(
    query: Tensor, keys: Tensor, values: Tensor, query_positions: Tensor, key_positions: Tensor, window: int
) -> Tensor:
    """Banded attention in blocks of C queries against the C + W keys that they can see.

    Args:
        query: [B, T, H, D].
        keys: [B, G, W + T, D].
        values: [B, G, W + T, D].
        query_positions: [B, T].
        key_positions: [B, W + T].
    """
    length, groups = query.shape[1], keys.shape[1]
    block = min(length, max(window, 32))
    padding = -length % block
    query = F.pad(query, (0, 0, 0, 0, 0, padding)).transpose(1, 2)
    query = query.unflatten(1, (groups, -1)).unflatten(3, (-1, block))  # [B, G, H/G, N, C, D]
    keys, values = (F.pad(rows, (0, 0, 0, padding)).unfold(2, block + window, block) for rows in (keys, values))
    query_positions = F.pad(query_positions, (0, padding), value=-1).unflatten(1, (-1, block))  # [B, N, C]
    key_positions = F.pad(key_positions, (0, padding), value=NO_POSITION).unfold(1, block + window, block)

    distance = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)  # [B, N, C, C + W]
    visible = ((distance >= 0) & (distance < window))[:, None, None]
    scores = query @ keys.unsqueeze(2) * query.shape[-1] ** -0.5  # [B, G, H/G, N, C, C + W]
    # A finite fill keeps rows that see nothing (padding) free of NaN, forwards and backwards.
    scores = scores.float() if scores.dtype != torch.float64 else scores
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
    output = weights.to(values.dtype) @ values.unsqueeze(2).transpose(-1, -2)
    attended: Tensor = output.flatten(3, 4).flatten(1, 2).transpose(1, 2)
    return attended[:, :length]
