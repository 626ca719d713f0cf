"""Next-token quality of a PyTorch model on text: the figures that finetuning and evaluation report."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from liger_export.errors import DataError

__all__ = ["Quality", "measure_quality", "read_documents", "token_blocks"]

TOKENIZER_BATCH = 512  # documents that a fast tokenizer takes at once, one a core


@dataclass(frozen=True, slots=True)
class Quality:
    """Next-token quality over some text.

    Attributes:
        loss: mean negative log-likelihood in nats.
        accuracy: share of tokens that are the model's first choice.
        tokens: predictions counted.
    """

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


@torch.no_grad()
def measure_quality(model: nn.Module, blocks: Tensor, batch_size: int = 8) -> Quality:
    """Next-token loss and accuracy over token blocks, int64 [N, T], in the model's own precision.

    Started by ``accelerate launch``, the processes share the blocks and each returns the figures of all.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64)
    for batch, is_counted in _share(blocks, batch_size):
        batch = batch.to(device)
        logits = model(input_ids=batch).logits[:, :-1]
        if is_counted:
            sums += _loss_and_hits(logits, batch[:, 1:])
    model.train(was_training)
    loss, hits = reduce(sums.to(device if device.type != "mps" else "cpu")).tolist()
    tokens = blocks[:, 1:].numel()
    return Quality(loss / tokens, hits / tokens, tokens)


def _loss_and_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood and count of right first choices, float64 [2]; row by row, to save memory."""
    sums = torch.zeros(2, dtype=torch.float64)
    for scores, wanted in zip(logits, targets, strict=True):
        sums[0] += float(F.cross_entropy(scores.float(), wanted, reduction="sum"))
        sums[1] += int((scores.argmax(-1) == wanted).sum())
    return sums


def _share(blocks: Tensor, batch_size: int) -> Iterator[tuple[Tensor, bool]]:
    """This process's batches, and whether each counts.

    Every process gets as many, because a sharded model runs only if all processes run it.
    """
    state = PartialState()
    batches = blocks.split(batch_size)
    for start in range(0, len(batches), state.num_processes):
        index = start + state.process_index
        yield batches[min(index, len(batches) - 1)], index < len(batches)


def token_blocks(tokenizer: Any, data: Path, length: int) -> Tensor:
    """Tokenize every document, join them, and cut blocks of ``length`` tokens: int64 [N, length].

    Raises:
        DataError: there is less than one block of text.
    """
    ids: list[int] = []
    documents = read_documents(data)
    while batch := list(islice(documents, TOKENIZER_BATCH)):
        for encoded in tokenizer(batch, verbose=False).input_ids:
            ids += encoded
    if len(ids) < length:
        raise DataError(f"{data} holds {len(ids)} tokens.", f"At least one block of {length} is needed: add text.")
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def read_documents(data: Path) -> Iterator[str]:
    """Yield the documents of a text file, of a JSONL file's ``text`` fields, or of a directory of such files.

    Raises:
        DataError: nothing is there, or a file is not UTF-8 text or not JSONL.
    """
    if data.is_dir():
        files = sorted(path for path in data.rglob("*") if path.is_file() and not path.name.startswith("."))
    else:
        files = [data]
    if not files or not files[0].exists():
        raise DataError(f"{data} holds no files.", "Pass a text or JSONL file, or a directory of them.")
    for file in files:
        try:
            if file.suffix == ".jsonl":
                with file.open(encoding="utf-8") as lines:
                    for line in lines:
                        if line.strip():
                            yield _text_of(json.loads(line))
            else:
                yield file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text.", "Convert it or leave it out.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is not JSONL.", 'Each line must be an object with a "text" field.') from error


def _text_of(record: Any) -> str:
    text = record["text"]
    if not isinstance(text, str):
        raise TypeError("text is no string")
    return text
