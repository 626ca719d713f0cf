"""Typed access to the metadata of a GGUF file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from liger_export.errors import CheckpointError

__all__ = ["Metadata", "Value"]

Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = Scalar | list[int] | list[float] | list[bool] | list[str] | list[int | float]
T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True, slots=True)
class Metadata:
    """The keys and values of a GGUF file. An error names the file, the key and the value.

    Every method raises CheckpointError if the value is missing and has no default, or has another type.
    """

    path: Path
    values: Mapping[str, Value]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def text(self, key: str, default: str | None = None) -> str:
        """Read a string."""
        return self._scalar(key, str, default)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Read a boolean."""
        return self._scalar(key, bool, default)

    def integer(self, key: str, default: int | None = None) -> int:
        """Read an integer of at least zero."""
        value = self._scalar(key, int, default)
        if value < 0:
            raise self._invalid(key)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Read a finite number of at least zero, as the shortest decimal that a float32 stores as this value."""
        value = self._scalar(key, float, default)
        if not (math.isfinite(value) and value >= 0):
            raise self._invalid(key)
        return float(str(np.float32(value)))

    def texts(self, key: str) -> list[str]:
        """Read an array of strings."""
        return self._array(key, str)

    def integers(self, key: str) -> list[int]:
        """Read an array of integers."""
        return self._array(key, int)

    def numbers(self, key: str) -> list[float]:
        """Read an array of finite numbers."""
        values = self._array(key, float)
        if not all(map(math.isfinite, values)):
            raise self._invalid(key)
        return values

    def _scalar(self, key: str, kind: type[T], default: T | None) -> T:
        value = self.values.get(key, default)
        if type(value) is not kind:
            raise self._invalid(key)
        return value

    def _array(self, key: str, kind: type[T]) -> list[T]:
        values = self.values.get(key)
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise self._invalid(key)
        return values  # type: ignore[return-value]

    def _invalid(self, key: str) -> CheckpointError:
        found = f"has an invalid {key}: {_shortened(self.values[key])}" if key in self else f"has no {key}"
        return CheckpointError(
            f"{self.path} {found}.", "Download the file again, or convert the model again with a current llama.cpp."
        )


def _shortened(value: Value) -> str:
    text = repr(value[:4] if isinstance(value, list) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
