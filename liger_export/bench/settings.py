"""Settings of a benchmark, checked before any long work."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from liger_export.errors import InputError

__all__ = ["DTYPES", "BenchSettings", "default_threads", "parse_against", "parse_contexts"]

DTYPES = ("float32", "bfloat16", "float16")
AGAINST_PREFIX = "hf:"


def default_threads() -> int:
    """Return the number of physical cores that this process may use; logical cores if that number is unknown."""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """Settings of a benchmark.

    Attributes:
        contexts: numbers of tokens read before decoding, in ascending order.
        tokens: tokens decoded one by one at each context.
        repeats: fresh processes per system and context.
        threads: threads of each system.
        dtype: dtype of the transformer, one of ``DTYPES``.
    """

    contexts: tuple[int, ...] = (128, 4096, 32768)
    tokens: int = 32
    repeats: int = 3
    threads: int = field(default_factory=default_threads)
    dtype: str = "float32"

    def check(self) -> None:
        """Raise InputError if a setting is out of range."""
        if not self.contexts or min(self.contexts) < 1:
            raise InputError(f"The contexts are {list(self.contexts)}.", "Pass at least one, each of 1 or more tokens.")
        for name, value in (("tokens", self.tokens), ("repeats", self.repeats), ("threads", self.threads)):
            if value < 1:
                raise InputError(f"{name} is {value}.", "It must be 1 or more.")
        if self.dtype not in DTYPES:
            raise InputError(f"There is no dtype {self.dtype!r} to run in.", f"Choose one of {', '.join(DTYPES)}.")


def parse_contexts(text: str) -> tuple[int, ...]:
    """Parse contexts from the command line, such as ``128,4096``. They are sorted and deduplicated.

    Raises:
        InputError: there are none, or one is not a positive integer.
    """
    fix = "Pass positive integers separated by commas, such as 128,4096."
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise InputError("There are no contexts to measure at.", fix)
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part) > 0):
            raise InputError(f"{part!r} is not a context to measure at.", fix)
    return tuple(sorted({int(part) for part in parts}))


def parse_against(text: str) -> Path:
    """Parse ``hf:DIR`` and return the directory. Raises InputError for another form, or if DIR is not a checkpoint."""
    fix = "Pass hf:DIR, where DIR is a Hugging Face checkpoint directory, such as the package's base."
    if not text.startswith(AGAINST_PREFIX) or text == AGAINST_PREFIX:
        raise InputError(f"{text!r} does not name a checkpoint to compare with.", fix)
    directory = Path(text.removeprefix(AGAINST_PREFIX))
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory.", fix)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} holds no config.json.", fix)
    return directory
