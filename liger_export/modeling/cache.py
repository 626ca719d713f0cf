"""What a Liger model carries from one forward to the next; the size does not depend on the tokens seen."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from liger_export.config import LigerConfig
from liger_export.state import WINDOW_STATES, by_layer, state_table

__all__ = ["LigerCache"]


@dataclass
class LigerCache:
    """The state tensors of every layer, in the order of the state table, and the tokens seen.

    Attributes:
        layers: per layer, its state tensors, each [B, ...].
        seen: int64 [B], tokens seen by each sequence, padding not counted.
        columns: columns of ``input_ids`` consumed, padding included; what ``generate`` slices by.
    """

    is_compileable: ClassVar[bool] = False  # what ``generate`` asks before it compiles a decoding step

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
            batch_size: sequences.
            dtype: the activation dtype, which the window is kept in. Recurrent state is float32, or float64
                for a float64 model.
            device: where the tensors live.
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
        """Columns consumed; the name is what ``generate`` calls."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Pick sequences by index [B], as beam search does."""
        self.layers = [tuple(tensor.index_select(0, beam_idx) for tensor in layer) for layer in self.layers]
        self.seen = self.seen.index_select(0, beam_idx)
