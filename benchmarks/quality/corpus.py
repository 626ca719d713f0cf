"""Collect Python source for a base model: training tokens, held-out text and the tokenizer.

Every UTF-8 ``.py`` file below the given folders is one document; ``stdlib`` and ``site-packages`` name those of the
running interpreter. Empty files, exact duplicates, files of more than 200 kB and files that call themselves generated
are left out. The hash of its path decides whether a file may be held out, which keeps the split stable from one machine
to the next. Never held out, since they would flatter the figures: tests, encoding tables, and files half of whose lines
are training text as well.

    python benchmarks/quality/corpus.py CORPUS stdlib site-packages

writes, with the documents in the order of their path's hash, so that the first lines are a fair sample:

    CORPUS/tokenizer.json    byte-level BPE, trained on the first --sample bytes of the training text
    CORPUS/train.jsonl       {"path": ..., "text": ...} a line
    CORPUS/train.npy         the same as token ids, uint16 [N], each document opened by the end-of-text token
    CORPUS/heldout.jsonl     as train.jsonl

``liger-export finetune`` tokenizes all it is given: pass it ``head -n 3000 CORPUS/train.jsonl``, not the whole.
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
OTHER_ROOTS = {"site-packages", "dist-packages"}  # inside a standard library's folder
GENERATED = re.compile(r"auto-?generated|automatically generated|generated (by|from)\b|do not edit", re.IGNORECASE)
GENERATED_WITHIN = 1000
LARGEST = 200_000
FAMILIAR = 0.5  # share of a file's lines
SHORT_LINE = 20
ENCODE_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """A source file: its path below its root, its text, and a number that depends on the path alone."""

    path: str
    text: str

    @property
    def order(self) -> int:
        """32 bits of the hash of the path."""
        return int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:4], "big")

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return len(self.text.encode())

    def place(self) -> tuple[int, str]:
        """Where the document comes among all."""
        return self.order, self.path

    def may_be_held_out(self) -> bool:
        """Tell whether the file is no test and no table."""
        parts = Path(self.path).parts
        return not NEVER_HELD_OUT & set(parts) and not parts[-1].startswith(("test_", "conftest"))

    def lines(self) -> list[str]:
        """Lines without their indentation, short ones left out."""
        return [line for line in map(str.strip, self.text.split("\n")) if len(line) > SHORT_LINE]


def documents(roots: list[Path], unfiltered: bool) -> Iterator[Document]:
    """Yield the files to use, each content once."""
    seen: set[bytes] = set()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if OTHER_ROOTS & set(relative.parts) or not path.is_file():
                continue
            if path.stat().st_size > LARGEST and not unfiltered:
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
    """Part the documents into training and held-out ones, the latter of ``most_bytes`` at most."""
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
        if known < max(1, FAMILIAR * len(lines)) and held_bytes + document.size <= most_bytes:
            heldout.append(document)
            held_bytes += document.size
        else:
            train.append(document)
    return sorted(train, key=Document.place), heldout


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Train the byte-level BPE; entry 0 separates documents."""
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
    """Yield texts from the start until ``most`` bytes are reached; always the first."""
    total = 0
    for document in found:
        total += document.size
        if total > most and total > document.size:
            return
        yield document.text


def encode(tokenizer: Tokenizer, found: list[Document]) -> NDArray[np.uint16]:
    """Join the documents into one row of token ids [N]; in batches, since an encoding is far larger than its ids."""
    rows: list[NDArray[np.uint16]] = []
    for start in range(0, len(found), ENCODE_AT_ONCE):
        batch = [document.text for document in found[start : start + ENCODE_AT_ONCE]]
        rows += [np.array(encoding.ids, np.uint16) for encoding in tokenizer.encode_batch_fast(batch)]
    return np.concatenate(rows)


def write_jsonl(path: Path, found: list[Document]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"path": document.path, "text": document.text}) + "\n" for document in found)


def folder(name: str) -> Path:
    """Read a DIR argument."""
    named = {"stdlib": "stdlib", "site-packages": "purelib"}
    path = Path(sysconfig.get_path(named[name])) if name in named else Path(name)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no folder")
    return path


def positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than zero")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="CORPUS", help="folder to write; its files are replaced")
    parser.add_argument("roots", type=folder, nargs="+", metavar="DIR", help="a folder, stdlib or site-packages")
    parser.add_argument("--vocabulary", type=positive, default=16_384, help="entries (default: %(default)s)")
    parser.add_argument("--sample", type=positive, default=60_000_000, help="bytes (default: %(default)s)")
    parser.add_argument(
        "--unfiltered", action="store_true", help="use large and generated files, hold out familiar ones"
    )
    parser.add_argument("--hold-out-one-in", type=positive, default=150, help="files (default: %(default)s)")
    parser.add_argument("--hold-out-most", type=positive, default=1_200_000, help="bytes (default: %(default)s)")
    args = parser.parse_args()
    if not 256 < args.vocabulary <= 65_536:
        parser.error("--vocabulary must be from 257 to 65536: every byte is an entry, and ids are stored as uint16")

    started = time.perf_counter()
    found = sorted(documents(args.roots, args.unfiltered), key=Document.place)
    train, heldout = split(found, args.hold_out_one_in, args.hold_out_most, args.unfiltered)
    if not train or not heldout:
        parser.error(
            f"{len(found)} files give {len(train)} to train on and {len(heldout)} to hold out: "
            "name more folders, or lower --hold-out-one-in"
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
