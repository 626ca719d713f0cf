"""The blocks of tokens that a finetuning stage trains on and measures on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from liger_export.data import TextEncoder, packed_blocks, token_blocks
from liger_export.errors import DataError
from liger_export.modeling.loss import IGNORED
from liger_export.ops import document_starts

__all__ = ["Blocks", "load_blocks"]


@dataclass(frozen=True, eq=False)
class Blocks(Dataset[dict[str, Tensor]]):
    """Blocks of tokens, as the Trainer reads them.

    Attributes:
        tokens: int64 [N, T].
        positions: int64 [N, T], from 0 in each document of a block; None if each block is read as one text.
    """

    tokens: Tensor
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.tokens[index]
        if self.positions is None:
            return {"input_ids": tokens, "labels": tokens}
        positions = self.positions[index]
        # No document predicts the first token of the next one.
        labels = tokens.masked_fill(document_starts(positions[None])[0], IGNORED)
        return {"input_ids": tokens, "labels": labels, "position_ids": positions}

    def split(self, count: int) -> tuple["Blocks", Tensor]:
        """Separate the tokens of the last ``count`` blocks from the other blocks."""
        positions = None if self.positions is None else self.positions[:-count]
        return Blocks(self.tokens[:-count], positions), self.tokens[-count:]

    def digest(self, measured: Tensor) -> str:
        """Return the SHA-256 of these blocks and of those to measure on."""
        parts = (self.tokens, measured) if self.positions is None else (self.tokens, self.positions, measured)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def load_blocks(
    encoder: TextEncoder, data: Path, heldout: Path | None, length: int, heldout_fraction: float, *, packing: bool
) -> tuple[Blocks, Tensor]:
    """Return the blocks to train on, and the blocks to measure on, int64 [N, length].

    Args:
        encoder: the model's tokenizer.
        data: text to train on.
        heldout: text to measure on; default: the last blocks of ``data``, which are then not trained on.
        length: tokens per block.
        heldout_fraction: share of the blocks of ``data`` to measure on if there is no ``heldout``.
        packing: read each document of a block by itself.

    Raises:
        DataError: the data is missing, unreadable or too short.
        InputError: the model does not know a token of the data.
    """
    blocks = Blocks(*packed_blocks(encoder, data, length)) if packing else Blocks(token_blocks(encoder, data, length))
    if heldout is not None:
        return blocks, token_blocks(encoder, heldout, length)
    count = max(1, round(len(blocks) * heldout_fraction))
    if count == len(blocks):
        raise DataError(f"{data} has no blocks left to train on.", "Add text, or pass --heldout.")
    return blocks.split(count)
