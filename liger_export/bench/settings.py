"""What a benchmark is asked for, checked before any long work."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from liger_export.errors import InputError

__all__ = ["DTYPES", "BenchSettings", "default_threads", "parse_against", "parse_contexts"]

DTYPES = ("float32", "bfloat16", "float16")
AGAINST_PREFIX = "hf:"


def default_threads() -> int:
    """Physical cores that this process may use; logical ones where the system does not tell."""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """How to measure.

    Attributes:
        contexts: numbers of tokens read before decoding, rising.
        tokens: decoded one by one at each context.
        repeats: fresh processes per contender and context.
        threads: of each contender; both get the same number.
        dtype: of the transformer, one of ``DTYPES``.
    """

    contexts: tuple[int, ...] = (128, 4096, 32768)
    tokens: int = 32
    repeats: int = 3
    threads: int = field(default_factory=default_threads)
    dtype: str = "float32"

    def check(self) -> None:
        """Raises InputError if a setting is out of range."""
        if not self.contexts or min(self.contexts) < 1:
            raise InputError(f"The contexts are {list(self.contexts)}.", "Give at least one, each of 1 or more tokens.")
        for name, value in (("tokens", self.tokens), ("repeats", self.repeats), ("threads", self.threads)):
            if value < 1:
                raise InputError(f"{name} is {value}.", "It must be 1 or more.")
        if self.dtype not in DTYPES:
            raise InputError(f"There is no dtype {self.dtype!r} to run in.", f"Choose one of {', '.join(DTYPES)}.")


def parse_contexts(text: str) -> tuple[int, ...]:
    """Contexts as the command line gives them, such as ``128,4096``, rising and each once.

    Raises:
        InputError: there are none, or one is no whole number above zero.
    """
    fix = "Write whole numbers above zero with commas between them, such as 128,4096."
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise InputError("There are no contexts to measure at.", fix)
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part) > 0):
            raise InputError(f"{part!r} is no context to measure at.", fix)
    return tuple(sorted({int(part) for part in parts}))


def parse_against(text: str) -> Path:
    """The directory in ``hf:DIR``. Raises InputError if it is not that, or holds no checkpoint."""
    fix = "Write hf:DIR, DIR being a Hugging Face checkpoint directory, such as the base of the package."
    if not text.startswith(AGAINST_PREFIX) or text == AGAINST_PREFIX:
        raise InputError(f"{text!r} names nothing to measure against.", fix)
    directory = Path(text.removeprefix(AGAINST_PREFIX))
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory.", fix)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} holds no config.json.", fix)
    return directory
