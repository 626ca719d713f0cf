"""Strict reading of ``config.json``. Every error names the field, the value and the fix."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from liger_export.errors import CheckpointError
from liger_export.files import read_json

__all__ = ["Fields", "read_config_json", "read_end_ids", "read_token_ids", "with_end_tokens", "without_machine_path"]

RESTORE = "Restore the original file."


class Fields:
    """Typed access to the values of a config.json. A null counts as missing.

    Every method raises CheckpointError, with the name of the field, if the value is missing or invalid.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def _get(self, name: str, kinds: tuple[type, ...], default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            value = default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found = f"has no {name!r}" if value is None else f"has {value!r} as {name!r}"
            raise CheckpointError(
                f"config.json {found}.", f"It must have the type {kinds[0].__name__}: restore the original file."
            )
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Read an integer."""
        return int(self._get(name, (int,), default))

    def number(self, name: str, default: float | None = None) -> float:
        """Read a finite number greater than zero."""
        value = float(self._get(name, (float, int), default))
        if not (math.isfinite(value) and value > 0):
            raise CheckpointError(f"config.json has {value} as {name!r}.", "It must be a number greater than zero.")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """Read a boolean."""
        return bool(self._get(name, (bool,), default))

    def integers(self, name: str) -> tuple[int, ...]:
        """Read a list of integers; empty if missing."""
        values = self._get(name, (list, tuple), [])
        if not all(type(value) is int for value in values):
            raise CheckpointError(f"config.json has {values!r} as {name!r}.", "It must be a list of integers.")
        return tuple(values)


def read_token_ids(value: Any) -> tuple[int, ...]:
    """Read token ids from null, one id or a list of ids. Raises CheckpointError."""
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and token >= 0 for token in ids):
        raise CheckpointError(f"config.json has {value!r} as a token id.", RESTORE)
    return ids


def with_end_tokens(values: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Use the end-of-text ids of ``generation_config.json``, as transformers' ``generate`` does.

    Raises:
        CheckpointError: ``generation_config.json`` is damaged.
    """
    path = checkpoint / "generation_config.json"
    if not path.is_file():
        return values
    try:
        ends = read_json(path).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).", "Restore the original file.") from error
    return values if ends is None else {**values, "eos_token_id": ends}


def without_machine_path(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop ``_name_or_path``: where a checkpoint lay on the machine that wrote it."""
    return {name: value for name, value in values.items() if name != "_name_or_path"}


def read_end_ids(checkpoint: Path) -> tuple[int, ...]:
    """Read the end-of-text ids of a checkpoint, with which ``convert`` would write its package.

    Raises:
        CheckpointError: ``config.json`` is missing or damaged, or ``generation_config.json`` is damaged.
    """
    return read_token_ids(with_end_tokens(read_config_json(checkpoint), checkpoint).get("eos_token_id"))


def read_config_json(directory: Path) -> dict[str, Any]:
    """Read ``config.json`` of a checkpoint directory.

    Raises:
        CheckpointError: the directory or the file is missing, or the file does not contain a JSON object.
    """
    path = directory / "config.json"
    try:
        values = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        cause = f"{directory} has no config.json." if directory.is_dir() else f"{directory} is not a directory."
        raise CheckpointError(cause, "Pass a Hugging Face checkpoint directory.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).", RESTORE) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not contain a JSON object.", RESTORE)
    return values
