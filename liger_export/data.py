"""Text for training and measurement: documents, their tokens, and fixed-length blocks of tokens."""

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

TOKENIZER_BATCH = 512  # documents per call: a fast tokenizer encodes them in parallel


def token_blocks(tokenizer: Any, data: Path, length: int, max_tokens: int | None = None) -> Tensor:
    """Cut the tokens of ``read_tokens`` into blocks, int64 [N, length]. An incomplete last block is dropped.

    Raises:
        DataError: the text holds less than one block, or cannot be read.
    """
    ids = read_tokens(tokenizer, data, max_tokens)
    if len(ids) < length:
        raise DataError(f"{data} holds {len(ids)} tokens.", f"Add text: at least one block of {length} is needed.")
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def read_tokens(tokenizer: Any, data: Path, max_tokens: int | None = None) -> list[int]:
    """Tokenize every document of ``read_documents`` and concatenate the tokens.

    Args:
        tokenizer: a transformers tokenizer, or one that ``runtime.read_tokenizer`` returned.
        data: see ``read_documents``.
        max_tokens: stop after this many tokens.
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
    """Yield the documents of a text file, the ``text`` fields of a JSONL file, or those of every file in a directory.

    Raises:
        DataError: there is no file, or a file is not UTF-8 text or not JSONL.
    """
    if data.is_dir():
        files = sorted(path for path in data.rglob("*") if path.is_file() and not path.name.startswith("."))
    else:
        files = [data]
    if not files or not files[0].exists():
        raise DataError(f"{data} holds no files.", "Pass a text or JSONL file, or a directory of such files.")
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
            raise DataError(f"{file} is not UTF-8 text.", "Convert it to UTF-8, or omit it.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is not JSONL.", 'Each line must be an object with a "text" field.') from error


def _text_of(record: Any) -> str:
    text = record["text"]
    if not isinstance(text, str):
        raise TypeError("text is not a string")
    return text
