"""Softmax attention over the last W keys, and the buffer of W rows that carries them from call to call.

Reference: ``naive_window_attention``. Rows of the buffer [B, G, W, D] are oldest first. Rows past the sequence's length
are never read, and are written as zeros.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from liger_export.ops.documents import document_starts, tokens_of_last_document

__all__ = ["DOCUMENT", "Blocks", "Span", "join_window", "leave_window", "rotate", "window_attention"]

NO_POSITION = -(2**40)  # farther than any window from every real position
DOCUMENT = 2**40  # distance between the first positions of two documents in a row


def rotate(hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding in Llama's half-split order, in the dtype of ``cos``; the result has the input's dtype.

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
    """Attend from T new tokens to the window, in blocks, and update the window.

    Args:
        query: [B, T, H, D], rotated.
        key: [B, T, G, D], rotated.
        value: [B, T, G, D].
        position_ids: int64 [B, T], consecutive within a document; a 0 after the first column begins another. -1 marks
            padding, allowed only at the end of a row.
        window_key: [B, G, W, D], the past keys.
        window_value: [B, G, W, D], the past values.

    Returns:
        Output [B, T, H, D] (zero at padding), and the window's keys and values after the last token.
    """
    window = window_key.shape[2]
    span = join_window(key, value, position_ids, window_key, window_value)
    output = _blockwise(query, span, window)
    output = torch.where((position_ids >= 0)[:, :, None, None], output, 0)
    return output, *leave_window(span, window)


@dataclass(frozen=True, slots=True)
class Span:
    """The window's rows followed by the call's own, newest last.

    Positions are those of the tokens plus ``DOCUMENT`` for each document that has begun since the row's first, so that
    all documents but a query's own are farther away than its window, or later.

    Attributes:
        keys: [B, G, W + T, D].
        values: [B, G, W + T, D].
        positions: int64 [B, W + T], of the rows; ``NO_POSITION`` where a row holds no token.
        query_positions: int64 [B, T], of the call's own tokens; -1 at padding.
        documents: int64 [B, W + T], number of each row's document, 0 for the one that the window belongs to.
        seen: int64 [B], tokens of the last document up to the end of this call.
        added: int64 [B], tokens of this call, without padding.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    query_positions: Tensor
    documents: Tensor
    seen: Tensor
    added: Tensor


def join_window(key: Tensor, value: Tensor, position_ids: Tensor, window_key: Tensor, window_value: Tensor) -> Span:
    """Join the window with the call's rotated keys and its values. The arguments are those of ``window_attention``."""
    window = window_key.shape[2]
    is_token = position_ids >= 0  # [B, T]
    seen = torch.where(is_token[:, 0], position_ids[:, 0], 0)
    keys = torch.cat((_newest_last(window_key, seen), key.transpose(1, 2)), dim=2)
    values = torch.cat((_newest_last(window_value, seen), value.transpose(1, 2)), dim=2)
    past_positions = seen[:, None] + torch.arange(-window, 0, device=seen.device)  # [B, W]
    documents = document_starts(position_ids).cumsum(1)  # [B, T]
    query_positions = torch.where(is_token, position_ids + documents * DOCUMENT, -1)
    positions = torch.cat((past_positions, query_positions), dim=1)
    return Span(
        keys,
        values,
        torch.where(positions >= 0, positions, NO_POSITION),
        query_positions,
        F.pad(documents, (window, 0)),
        tokens_of_last_document(position_ids, seen),
        is_token.sum(1),
    )


def leave_window(span: Span, window: int) -> tuple[Tensor, Tensor]:
    """Return the window's keys and values after the call, each [B, G, W, D]."""
    held = span.seen.clamp(max=window)
    rows = torch.arange(window, device=held.device)
    source, filled = (window + span.added - held)[:, None] + rows, rows < held[:, None]  # [B, W]
    return _take_rows(span.keys, source, filled), _take_rows(span.values, source, filled)


def _newest_last(buffer: Tensor, seen: Tensor) -> Tensor:
    """Shift the rows of a buffer that is not full to its end; zero the rest."""
    window = buffer.shape[2]
    held = seen.clamp(max=window)
    source = torch.arange(window, device=seen.device) - (window - held)[:, None]  # [B, W]
    return _take_rows(buffer, source, source >= 0)


def _take_rows(rows: Tensor, source: Tensor, filled: Tensor) -> Tensor:
    """Gather rows [B, G, N, D] by index [B, W]; zero where ``filled`` [B, W] is false."""
    index = source.clamp(0, rows.shape[2] - 1)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
    return torch.where(filled[:, None, :, None], rows.gather(2, index), 0)


def _blockwise(query: Tensor, span: Span, window: int) -> Tensor:
    """Banded attention: blocks of C queries attend to the C + W keys that they can see.

    Args:
        query: [B, T, H, D].
        span: the keys and values.
        window: W.
    """
    length, num_key_value_heads = query.shape[1], span.keys.shape[1]
    blocks = Blocks(length, window)
    query = blocks.queries(query.transpose(1, 2)).unflatten(1, (num_key_value_heads, -1))  # [B, G, H/G, N, C, D]
    keys, values = (blocks.spans(rows).unsqueeze(2) for rows in (span.keys, span.values))  # [B, G, 1, N, C + W, D]
    distance = blocks.distances(span)
    visible = ((distance >= 0) & (distance < window))[:, None, None]
    scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5  # [B, G, H/G, N, C, C + W]
    # With a finite fill, rows that see nothing (padding) give no NaN, in the forward and the backward pass.
    scores = scores.float() if scores.dtype != torch.float64 else scores
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
    output = weights.to(values.dtype) @ values
    return blocks.joined(output.flatten(1, 2)).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Blocks:
    """T queries in N blocks of C, each with the C + W rows of a span that its queries can see."""

    length: int
    window: int

    @property
    def size(self) -> int:
        """C, queries per block."""
        return min(self.length, max(self.window, 32))

    @property
    def padding(self) -> int:
        """Number of rows appended to fill the last block."""
        return -self.length % self.size

    def queries(self, rows: Tensor) -> Tensor:
        """Split [B, heads, T, D] into [B, heads, N, C, D]."""
        padded: Tensor = F.pad(rows, (0, 0, 0, self.padding)).unflatten(2, (-1, self.size))
        return padded

    def spans(self, rows: Tensor) -> Tensor:
        """Take each block's rows: [B, heads, W + T, D] to [B, heads, N, C + W, D]."""
        padded = F.pad(rows, (0, 0, 0, self.padding))
        return padded.unfold(2, self.size + self.window, self.size).transpose(-1, -2)

    def distances(self, span: Span) -> Tensor:
        """Distance in tokens from each key to each query: int64 [B, N, C, C + W], negative for later keys."""
        query_positions = F.pad(span.query_positions, (0, self.padding), value=-1).unflatten(1, (-1, self.size))
        key_positions = F.pad(span.positions, (0, self.padding), value=NO_POSITION)
        key_positions = key_positions.unfold(1, self.size + self.window, self.size)
        distances: Tensor = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
        return distances

    def joined(self, rows: Tensor) -> Tensor:
        """Join blocks: [B, heads, N, C, D] to [B, heads, T, D]."""
        return rows.flatten(2, 3)[:, :, : self.length]
