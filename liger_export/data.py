"""Text for training and measuring: documents, their tokens, and blocks of tokens."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from liger_export.errors import DataError

__all__ = ["read_documents", "read_tokens", "token_blocks"]

TOKENIZER_BATCH = 512  # documents that a fast tokenizer encodes at once, one per core


def token_blocks(tokenizer: Any, data: Path, length: int, max_tokens: int | None = None) -> Tensor:
    """The tokens of ``read_tokens`` in blocks of ``length``, the rest left out: int64 [N, length].

    Raises:
        DataError: there is less than one block of text.
    """
    ids = read_tokens(tokenizer, data, max_tokens)
    if len(ids) < length:
        raise DataError(f"{data} holds {len(ids)} tokens.", f"At least one block of {length} is needed: add text.")
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def read_tokens(tokenizer: Any, data: Path, max_tokens: int | None = None) -> list[int]:
    """Tokenize every document of ``read_documents`` and join them.

    Args:
        tokenizer: a transformers tokenizer, or a package's own.
        data: as ``read_documents``.
        max_tokens: stop after these.
    """
    documents, ids = read_documents(data), list[int]()
    while (max_tokens is None or len(ids) < max_tokens) and (batch := list(islice(documents, TOKENIZER_BATCH))):
        for encoded in _encode(tokenizer, batch):
            ids += encoded
    return ids[:max_tokens]


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if isinstance(tokenizer, Tokenizer):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    ids: list[list[int]] = tokenizer(texts, verbose=False).input_ids
    return ids


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
