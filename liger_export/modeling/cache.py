"""The state that a Liger model carries from one forward to the next; its size does not grow with the tokens seen."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from liger_export.config import LigerConfig
from liger_export.state import WINDOW_STATES, by_layer, state_table

__all__ = ["LigerCache"]


@dataclass
class LigerCache:
    """The state tensors of every layer, and the number of tokens seen.

    Attributes:
        layers: each layer's state tensors, [B, ...], in the order of the state table.
        seen: int64 [B], tokens seen by each sequence, without padding.
        columns: columns of ``input_ids`` consumed, padding included; ``generate`` slices by it.
    """

    is_compileable: ClassVar[bool] = False  # ``generate`` reads it before it compiles a decoding step

    layers: list[tuple[Tensor, ...]]
    seen: Tensor
    columns: int = 0

    @classmethod
    def zeros(
        cls, config: LigerConfig, batch_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> "LigerCache":
        """The state before the first token.

        Args:
            config: the model.
            batch_size: number of sequences.
            dtype: the activation dtype, also of the window. Recurrent state is float32, or float64 for a float64
                model.
            device: device of the tensors.
        """
        wide = torch.promote_types(dtype, torch.float32)
        table = state_table(config)
        dtypes = [dtype if entry.name in WINDOW_STATES else wide for entry in table]
        tensors = [
            torch.zeros(batch_size, *entry.shape, dtype=entry_dtype, device=device)
            for entry, entry_dtype in zip(table, dtypes, strict=True)
        ]
        return cls(by_layer(table, tensors), torch.zeros(batch_size, dtype=torch.int64, device=device))

    def get_seq_length(self) -> int:
        """Columns consumed, under the name that ``generate`` calls."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select sequences by index [B], for beam search."""
        self.layers = [tuple(tensor.index_select(0, beam_idx) for tensor in layer) for layer in self.layers]
        self.seen = self.seen.index_select(0, beam_idx)
