"""Text for training and measurement: documents, their tokens, and fixed-length blocks of tokens.

A text file is one document. A JSONL file holds one document per line, in the field ``text`` of an object.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from liger_export.config import LigerConfig
from liger_export.errors import DataError, InputError

__all__ = ["TextEncoder", "packed_blocks", "read_documents", "read_tokens", "token_blocks"]

MARGIN = 256  # tokens before a cut that are never used
CHARACTERS_PER_TOKEN = 8  # more than most texts have
TOKENIZER_BATCH = 512  # documents per call: a fast tokenizer encodes them in parallel

JSON_LINES = frozenset({".jsonl", ".jsonlines", ".ndjson"})
JSON = ".json"
PROSE = frozenset({".md", ".rst", ".tex", ".text", ".txt"})
SOURCE_CODE = frozenset({
    ".c", ".cc", ".cpp", ".cs", ".cu", ".cuh", ".f90", ".go", ".h", ".hpp", ".hs", ".java", ".js", ".kt", ".lua", ".m",
    ".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts",
})  # fmt: skip
COMPRESSED = frozenset({".7z", ".bz2", ".gz", ".lz4", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"})
OTHER_FORMATS = frozenset({
    ".arrow", ".avro", ".bin", ".csv", ".db", ".doc", ".docx", ".epub", ".feather", ".h5", ".hdf5", ".npy", ".npz",
    ".orc", ".parquet", ".pdf", ".pickle", ".pkl", ".pt", ".pth", ".safetensors", ".sqlite", ".tsv", ".xls", ".xlsx",
})  # fmt: skip
ABOUT = frozenset({"license", "licence", "readme"})  # names of files about a data set, in any case
METADATA = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
RECORDS = 'Each line must be an object with a string "text"; a .json file may also be one array of such objects.'


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A model's tokenizer, and what the model knows of its tokens.

    Attributes:
        model: the model's directory.
        tokenizer: a transformers tokenizer, or one that ``runtime.read_tokenizer`` returned.
        vocab_size: number of tokens that the model knows.
        end_ids: tokens that end a text. The first of them separates documents.
    """

    model: Path
    tokenizer: Any
    vocab_size: int
    end_ids: tuple[int, ...]

    @classmethod
    def of(cls, model: Path, tokenizer: Any, config: LigerConfig) -> "TextEncoder":
        """Describe a package by its tokenizer and its config."""
        return cls(model, tokenizer, config.vocab_size, config.eos_token_ids)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encode each text, with the special tokens that the tokenizer adds."""
        if isinstance(self.tokenizer, Tokenizer):
            return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        ids: list[list[int]] = self.tokenizer(texts, verbose=False).input_ids
        return ids

    def encode_start(self, text: str, count: int) -> list[int]:
        """Encode ``count`` tokens or more at the start of a text, if it has them, but not a long rest.

        Tokens near the end of a cut text can differ from those of the whole text. So as many tokens again, and
        ``MARGIN``, lie between the last one that is used and the cut.
        """
        needed = 2 * count + MARGIN
        length = CHARACTERS_PER_TOKEN * needed
        while length < len(text):
            [ids] = self.encode([text[:length]])
            if len(ids) >= needed:
                return ids[:count]
            length *= 4
        return self.encode([text])[0]

    def separator(self, before: list[int], after: list[int]) -> tuple[int, ...]:
        """Return the end token to put between two documents: none if one stands there already.

        Some tokenizers end each text with it. Others begin each text with it, because it is also their BOS token.
        """
        if not (before and after) or before[-1] in self.end_ids or after[0] in self.end_ids:
            return ()
        return self.end_ids[:1]

    def ended(self, tokens: list[int]) -> list[int]:
        """Return the tokens of a document with an end token after them, unless one stands there already."""
        return tokens if tokens[-1:] and tokens[-1] in self.end_ids else [*tokens, *self.end_ids[:1]]

    def check(self, ids: list[int]) -> None:
        """Check that the model knows every token. Raises InputError."""
        if (largest := max(ids, default=0)) >= self.vocab_size:
            raise InputError(
                f"The tokenizer of {self.model} produces token {largest}, but the model knows {self.vocab_size:,} "
                "tokens.",
                "They belong to different models: restore the tokenizer files.",
            )


def token_blocks(encoder: TextEncoder, data: Path, length: int, max_tokens: int | None = None) -> Tensor:
    """Cut the tokens of ``read_tokens`` into blocks, int64 [N, length]. An incomplete last block is dropped.

    Raises:
        DataError: the text holds less than one block, or cannot be read.
        InputError: the model does not know a token.
    """
    return _cut(read_tokens(encoder, data, max_tokens), length, data)


def packed_blocks(encoder: TextEncoder, data: Path, length: int) -> tuple[Tensor, Tensor]:
    """Cut documents, each with an end token after it, into blocks: tokens and positions, int64 [N, length] each.

    Positions count from 0 in each document. The part of a document that a block's end cuts off begins the next block,
    at position 0. An incomplete last block is dropped.

    Raises:
        DataError: the text holds less than one block, or cannot be read.
        InputError: the model does not know a token.
    """
    documents, ids, positions = read_documents(data), list[int](), list[int]()
    while batch := _next_batch(documents, None):
        for tokens in map(encoder.ended, encoder.encode(batch)):
            ids += tokens
            positions += range(len(tokens))
    encoder.check(ids)
    counted = _cut(positions, length, data)
    in_first = (counted == 0).cumsum(1) == 0  # the rest of a document that began in an earlier block
    return _cut(ids, length, data), torch.where(in_first, counted - counted[:, :1], counted)


def _cut(numbers: list[int], length: int, data: Path) -> Tensor:
    """Cut the tokens of a text, or their positions, into blocks [N, length]. Raises DataError if there is none."""
    if len(numbers) < length:
        raise DataError(f"{data} holds {len(numbers)} tokens.", f"Add text: at least one block of {length} is needed.")
    return torch.tensor(numbers[: len(numbers) // length * length]).view(-1, length)


def read_tokens(encoder: TextEncoder, data: Path, max_tokens: int | None = None) -> list[int]:
    """Tokenize every document of ``read_documents`` and concatenate the tokens.

    Between two documents there is one end token, see ``TextEncoder.separator``. The last document gets none.

    Args:
        encoder: the model's tokenizer.
        data: see ``read_documents``.
        max_tokens: stop after this many tokens.

    Raises:
        DataError: the text cannot be read.
        InputError: the model does not know a token.
    """
    documents, ids = read_documents(data), list[int]()
    while max_tokens is None or len(ids) < max_tokens:
        wanted = None if max_tokens is None else max_tokens - len(ids)
        if not (batch := _next_batch(documents, wanted)):
            break
        encoded = encoder.encode(batch[:-1]) if len(batch) > 1 else []
        encoded += encoder.encode(batch[-1:]) if wanted is None else [encoder.encode_start(batch[-1], wanted)]
        for tokens in encoded:
            ids += encoder.separator(ids, tokens)
            ids += tokens
    ids = ids[:max_tokens]
    encoder.check(ids)
    return ids


def _next_batch(documents: Iterator[str], wanted: int | None) -> list[str]:
    """Take some documents: not many more than hold ``wanted`` tokens."""
    batch, characters = list[str](), 0
    for text in islice(documents, TOKENIZER_BATCH):
        batch.append(text)
        characters += len(text)
        if wanted is not None and characters >= CHARACTERS_PER_TOKEN * wanted:
            break
    return batch


def read_documents(data: Path) -> Iterator[str]:
    """Yield the documents of a file, or of every file in a directory. Empty documents are left out.

    A ``.jsonl``, ``.jsonlines`` or ``.ndjson`` file holds one object per line, with the document in its field ``text``.
    A ``.json`` file is the same, or one array of such objects. Any other file is one document, unless its suffix names
    a format that is not text. Case does not matter in suffixes, and a byte order mark is dropped.

    In a directory every file needs the suffix of one of these formats, of prose or of source code. Hidden files,
    README and LICENSE files, and the metadata that ``datasets`` writes are not documents there.

    Raises:
        DataError: there is no file, a format is not supported, or a line is not UTF-8 text or not such an object.
    """
    for file in _files(data):
        yield from filter(None, _documents_of(file))


def _files(data: Path) -> list[Path]:
    """Return the files to read, in order. All formats are checked before the first file is read."""
    if not data.exists():
        raise DataError(f"{data} does not exist.", "Pass a text or JSONL file, or a directory of such files.")
    if not data.is_dir():
        _check_format(data)
        return [data]
    files = sorted(path for path in data.rglob("*") if path.is_file() and _is_data(path.relative_to(data)))
    if not files:
        raise DataError(f"{data} holds no documents.", "Pass a text or JSONL file, or a directory of such files.")
    known = JSON_LINES | {JSON} | PROSE | SOURCE_CODE
    for file in files:
        _check_format(file)
        if file.suffix.lower() not in known:
            raise DataError(
                f"{file} has an unknown suffix.",
                "If it is text, add .txt to its name or pass this file alone; if not, move it elsewhere.",
            )
    return files


def _is_data(path: Path) -> bool:
    """Return True for a path in a directory unless it is hidden or about the data."""
    if any(part.startswith(".") for part in path.parts):
        return False
    is_about = path.stem.lower() in ABOUT and path.suffix.lower() in PROSE | {""}
    return not is_about and path.name.lower() not in METADATA


def _check_format(file: Path) -> None:
    suffix = file.suffix.lower()
    if suffix in COMPRESSED:
        raise DataError(f"{file} is compressed or an archive.", "Unpack it first.")
    if suffix in OTHER_FORMATS:
        raise DataError(
            f"{file} is not a text file, by its suffix {suffix}.",
            'Write its texts as .txt files, or as a .jsonl file with one {"text": ...} per line.',
        )


def _documents_of(file: Path) -> Iterator[str]:
    suffix = file.suffix.lower()
    if suffix == JSON and _is_array(file):
        for number, record in enumerate(_parse(_read_text(file), file, 1), 1):
            yield _text_of(record, f"{file}, record {number}")
    elif suffix == JSON or suffix in JSON_LINES:
        yield from _read_lines(file)
    else:
        yield _read_text(file)


def _is_array(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4096).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(file, 1 + error.object.count(b"\n", 0, error.start), error) from error


def _read_lines(file: Path) -> Iterator[str]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(file, number, error) from error
            if text := text.rstrip():
                yield _text_of(_parse(text, file, number), f"{file}, line {number}")


def _not_utf8(file: Path, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(f"{file}, line {line}, is not UTF-8 text (byte 0x{byte:02x}).", "Convert it to UTF-8, or omit it.")


def _parse(text: str, file: Path, line: int) -> Any:
    """Parse JSON that begins at a line of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{file}, line {line + error.lineno - 1}"
        raise DataError(f"{where}, is not JSON ({error.msg}, column {error.colno}).", RECORDS) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, line {line}, cannot be read as JSON ({error}).", RECORDS) from error


def _text_of(record: Any, where: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f"{where}, is not a JSON object.", RECORDS)
    if "text" not in record:
        raise DataError(f'{where}, has no "text", only: {", ".join(record)[:80] or "nothing"}.', RECORDS)
    text = record["text"]
    if not isinstance(text, str):
        raise DataError(f'{where}, has a "text" that is not a string.', RECORDS)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{where}, contains the lone surrogate {half}.", "Correct the text, or omit it.") from error
    return text
