"""The heads of one layer, as a mixer reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from liger_export.ops.documents import document_starts
from liger_export.ops.window import rotate

__all__ = ["Heads"]


@dataclass(frozen=True, slots=True)
class Heads:
    """A layer's projections, split into heads; values are zero at padding.

    Attributes:
        query: [B, T, H, D], as projected.
        key: [B, T, G, D], as projected.
        value: [B, T, G, D], zero at padding.
        rotated_query: [B, T, H, D].
        rotated_key: [B, T, G, D].
        position_ids: int64 [B, T], -1 at padding. A 0 after the first column begins a document.
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
        """Split packed projections [B, T, heads * D] into heads and rotate query and key."""
        query, key, value = (tensor.unflatten(-1, (-1, head_dim)) for tensor in (query, key, value))
        value = torch.where((position_ids >= 0)[:, :, None, None], value, 0)
        return cls(query, key, value, rotate(query, cos, sin), rotate(key, cos, sin), position_ids)

    @property
    def wide_query(self) -> Tensor:
        """``query`` in float32, or in float64 if it is float64."""
        return self.query.to(torch.promote_types(self.query.dtype, torch.float32))

    @property
    def wide_key(self) -> Tensor:
        """``key`` in float32, or in float64 if it is float64."""
        return self.key.to(torch.promote_types(self.key.dtype, torch.float32))

    def zero_padding(self, tensor: Tensor) -> Tensor:
        """Set [B, T, heads, ...] to zero at padding, so that padding does not change a state."""
        return torch.where((self.position_ids >= 0)[:, :, None, None], tensor, 0)

    def decays(self, gate: Tensor) -> Tensor:
        """Log decays from gates [B, T, G, K]: 0 at padding, and minus infinity where a document begins."""
        starts = document_starts(self.position_ids)[:, :, None, None]
        return self.zero_padding(gate).masked_fill(starts, -torch.inf)
