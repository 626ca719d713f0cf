"""Several documents in one row (sequence packing): a position of 0 after the first column begins a document.

Positions count from 0 in each document, so they mark the boundaries by themselves. State and window are empty at each
boundary. The first document of a row may continue from a state.
"""

import torch
from torch import Tensor

__all__ = ["document_starts", "tokens_of_last_document"]


def document_starts(position_ids: Tensor) -> Tensor:
    """Tell which tokens begin a document that is not the row's first: bool [B, T] from int64 [B, T]."""
    is_start = position_ids == 0
    return torch.cat((torch.zeros_like(is_start[:, :1]), is_start[:, 1:]), dim=1)


def tokens_of_last_document(position_ids: Tensor, seen: Tensor) -> Tensor:
    """Count the tokens of each row's last document, those of earlier calls included: int64 [B].

    Args:
        position_ids: int64 [B, T], -1 at padding, which is allowed only at the end of a row.
        seen: int64 [B], tokens before this call.
    """
    added = (position_ids >= 0).sum(1)
    last = position_ids.gather(1, (added - 1).clamp(min=0)[:, None]).squeeze(1)
    return torch.where(added > 0, last + 1, seen)
