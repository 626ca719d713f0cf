"""Collect the training text of pycode-7m: the source of CPython's standard library.

Every UTF-8 ``.py`` file below the running interpreter's ``stdlib`` folder is one document. A file is held
out when the hash of its path says so, which keeps the split stable from one machine to the next. Tests and
the generated ``encodings`` tables are never held out: they are repetitive and would flatter the figures.

    python corpus.py OUT      # writes OUT/train.jsonl, OUT/heldout/*.txt and OUT/tokenizer.json
"""

import argparse
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
HELD_OUT_ONE_IN = 28
NEVER_HELD_OUT = {"test", "tests", "encodings", "idle_test", "pydoc_data"}


def documents() -> Iterator[tuple[str, str]]:
    """Yield (path relative to the standard library, text) in sorted order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if "site-packages" in relative.parts or "dist-packages" in relative.parts:
            continue
        try:
            yield relative.as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def is_held_out(relative: str) -> bool:
    """Tell whether a file belongs to the held-out split; depends on its path alone."""
    if NEVER_HELD_OUT & set(Path(relative).parts):
        return False
    return int.from_bytes(hashlib.sha256(relative.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train the byte-level BPE of 4,096 entries; entry 0 separates documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out

    train, heldout = [], []
    for relative, text in documents():
        (heldout if is_held_out(relative) else train).append((relative, text))

    (out / "heldout").mkdir(parents=True, exist_ok=True)
    for relative, text in heldout:
        (out / "heldout" / (relative.replace("/", "__") + ".txt")).write_text(text, encoding="utf-8")
    with (out / "train.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"path": path, "text": text}) + "\n" for path, text in train)
    train_tokenizer([text for _, text in train]).save(str(out / "tokenizer.json"))
    for name, split in (("train", train), ("heldout", heldout)):
        print(f"{name}: {len(split)} files, {sum(len(text.encode()) for _, text in split):,} bytes")


if __name__ == "__main__":
    main()
