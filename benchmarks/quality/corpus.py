"""Collect Python source code for a base model: training tokens, held-out text and a tokenizer.

    python benchmarks/quality/corpus.py CORPUS stdlib site-packages

Every UTF-8 ``.py`` file in the given directories is one document; ``stdlib`` and ``site-packages`` stand for those of
the running interpreter. Empty files, exact duplicates, files of more than 200 kB and files marked as generated are
omitted. The hash of a file's path decides if it can be held out, so the split is the same on every machine. Files that
would make the held-out metrics too good are never held out: tests, encoding tables, and files with half or more of
their lines in the training text.

Output, with documents in the order of their path's hash, so that the first lines are a representative sample:

    CORPUS/tokenizer.json    byte-level BPE, trained on the first --sample bytes of the training text
    CORPUS/train.jsonl       one {"path": ..., "text": ...} per line
    CORPUS/train.npy         the same as token ids, uint16 [N]; each document starts with the end-of-text token
    CORPUS/heldout.jsonl     in the format of train.jsonl

``liger-export finetune`` tokenizes its whole input: pass the output of ``head -n 3000 CORPUS/train.jsonl``.
"""

import argparse
import hashlib
import json
import re
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
NEVER_HELD_OUT = {"test", "tests", "encodings", "idle_test", "pydoc_data"}
OTHER_ROOTS = {"site-packages", "dist-packages"}  # inside a standard library's directory
GENERATED = re.compile(r"auto-?generated|automatically generated|generated (by|from)\b|do not edit", re.IGNORECASE)
GENERATED_WITHIN = 1000  # characters from the start of a file
MAX_BYTES = 200_000
MAX_FAMILIAR = 0.5  # share of a file's lines that are in the training text
SHORT_LINE = 20
TOKENIZER_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """A source file: its path relative to its root, and its text."""

    path: str
    text: str

    @property
    def order(self) -> int:
        """32 bits of the path's hash."""
        return int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:4], "big")

    @property
    def size(self) -> int:
        """Number of UTF-8 bytes."""
        return len(self.text.encode())

    def place(self) -> tuple[int, str]:
        """Return the sort key of the document."""
        return self.order, self.path

    def may_be_held_out(self) -> bool:
        """Return True if the file is neither a test nor a table."""
        parts = Path(self.path).parts
        return not NEVER_HELD_OUT & set(parts) and not parts[-1].startswith(("test_", "conftest"))

    def lines(self) -> list[str]:
        """Return the lines without indentation, except short ones."""
        return [line for line in map(str.strip, self.text.split("\n")) if len(line) > SHORT_LINE]


def documents(roots: list[Path], unfiltered: bool) -> Iterator[Document]:
    """Yield the files to use, without duplicates."""
    seen: set[bytes] = set()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if OTHER_ROOTS & set(relative.parts) or not path.is_file():
                continue
            if path.stat().st_size > MAX_BYTES and not unfiltered:
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            digest = hashlib.sha256(text.encode()).digest()
            if not text.strip() or digest in seen:
                continue
            if GENERATED.search(text[:GENERATED_WITHIN]) and not unfiltered:
                continue
            seen.add(digest)
            yield Document(relative.as_posix(), text)


def split(
    found: list[Document], one_in: int, most_bytes: int, unfiltered: bool
) -> tuple[list[Document], list[Document]]:
    """Split the documents into training documents and at most ``most_bytes`` of held-out documents."""
    train: list[Document] = []
    candidates: list[Document] = []
    for document in found:
        chosen = document.order % one_in == 0 and document.may_be_held_out()
        (candidates if chosen else train).append(document)
    familiar: set[str] = set()
    if not unfiltered:
        asked = {line for document in candidates for line in document.lines()}
        familiar = {line for document in train for line in document.lines() if line in asked}

    heldout, held_bytes = [], 0
    for document in candidates:
        lines = document.lines()
        known = sum(line in familiar for line in lines)
        if known < max(1, MAX_FAMILIAR * len(lines)) and held_bytes + document.size <= most_bytes:
            heldout.append(document)
            held_bytes += document.size
        else:
            train.append(document)
    return sorted(train, key=Document.place), heldout


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer. Entry 0 separates documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def first_bytes(found: list[Document], most: int) -> Iterator[str]:
    """Yield texts from the start up to ``most`` bytes, and always the first."""
    total = 0
    for document in found:
        total += document.size
        if total > most and total > document.size:
            return
        yield document.text


def encode(tokenizer: Tokenizer, found: list[Document]) -> NDArray[np.uint16]:
    """Concatenate the documents' token ids [N]. Works in batches: an encoding is far larger than its ids."""
    rows: list[NDArray[np.uint16]] = []
    for start in range(0, len(found), TOKENIZER_BATCH):
        batch = [document.text for document in found[start : start + TOKENIZER_BATCH]]
        rows += [np.array(encoding.ids, np.uint16) for encoding in tokenizer.encode_batch_fast(batch)]
    return np.concatenate(rows)


def write_jsonl(path: Path, found: list[Document]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"path": document.path, "text": document.text}) + "\n" for document in found)


def folder(name: str) -> Path:
    """Parse a DIR argument."""
    named = {"stdlib": "stdlib", "site-packages": "purelib"}
    path = Path(sysconfig.get_path(named[name])) if name in named else Path(name)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is not a directory")
    return path


def positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than zero")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="CORPUS", help="directory to write; its files are replaced")
    parser.add_argument("roots", type=folder, nargs="+", metavar="DIR", help="a directory, stdlib or site-packages")
    parser.add_argument(
        "--vocabulary", type=positive, default=16_384, help="entries of the tokenizer (default: %(default)s)"
    )
    parser.add_argument(
        "--sample", type=positive, default=60_000_000, help="bytes to train the tokenizer on (default: %(default)s)"
    )
    parser.add_argument(
        "--unfiltered", action="store_true", help="also use large and generated files, and hold out familiar ones"
    )
    parser.add_argument(
        "--hold-out-one-in", type=positive, default=150, help="hold out one file in this many (default: %(default)s)"
    )
    parser.add_argument(
        "--hold-out-most", type=positive, default=1_200_000, help="held-out bytes at most (default: %(default)s)"
    )
    args = parser.parse_args()
    if not 256 < args.vocabulary <= 65_536:
        parser.error("--vocabulary must be 257 to 65536: every byte is an entry, and ids are stored as uint16")

    started = time.perf_counter()
    found = sorted(documents(args.roots, args.unfiltered), key=Document.place)
    train, heldout = split(found, args.hold_out_one_in, args.hold_out_most, args.unfiltered)
    if not train or not heldout:
        parser.error(
            f"{len(found)} files give {len(train)} to train on and {len(heldout)} to hold out: "
            "pass more directories, or lower --hold-out-one-in"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out / "train.jsonl", train)
    write_jsonl(args.out / "heldout.jsonl", heldout)
    for name, part in (("train", train), ("heldout", heldout)):
        print(f"{name}: {len(part):,} files, {sum(document.size for document in part):,} bytes")
    print(f"read and written after {time.perf_counter() - started:.0f} s", flush=True)

    tokenizer = train_tokenizer(first_bytes(train, args.sample), args.vocabulary)
    tokenizer.save(str(args.out / "tokenizer.json"))
    print(f"tokenizer of {tokenizer.get_vocab_size():,} after {time.perf_counter() - started:.0f} s", flush=True)

    tokens = encode(tokenizer, train)
    np.save(args.out / "train.npy", tokens)
    print(f"{len(tokens):,} training tokens after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
