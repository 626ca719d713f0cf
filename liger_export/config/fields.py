"""Reading a ``config.json`` strictly: every mistake names the field, the value and the fix."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from liger_export.errors import CheckpointError

__all__ = ["Fields", "read_config_json", "read_token_ids"]

RESTORE = "Restore the original file."


class Fields:
    """Typed look-ups in a config.json, with errors that name the field. A null counts as absent."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def _get(self, name: str, kinds: tuple[type, ...], default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            value = default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found = "has no" if value is None else f"has {value!r} as"
            raise CheckpointError(
                f"config.json {found} {name!r}.", f"It needs a {kinds[0].__name__} there: restore the original file."
            )
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        return int(self._get(name, (int,), default))

    def number(self, name: str, default: float | None = None) -> float:
        """A number greater than zero."""
        value = float(self._get(name, (float, int), default))
        if not (math.isfinite(value) and value > 0):
            raise CheckpointError(f"config.json has {value} as {name!r}.", "It needs a number greater than zero there.")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        return bool(self._get(name, (bool,), default))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, empty if absent."""
        values = self._get(name, (list, tuple), [])
        if not all(type(value) is int for value in values):
            raise CheckpointError(f"config.json has {values!r} as {name!r}.", "It needs a list of whole numbers there.")
        return tuple(values)


def read_token_ids(value: Any) -> tuple[int, ...]:
    """Token ids from null, one id or a list of ids."""
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and token >= 0 for token in ids):
        raise CheckpointError(f"config.json has {value!r} as a token id.", RESTORE)
    return ids


def read_config_json(directory: Path) -> dict[str, Any]:
    """Read ``config.json`` of a checkpoint directory.

    Raises:
        CheckpointError: there is no directory, no ``config.json``, or no JSON object in it.
    """
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        cause = f"{directory} holds no config.json." if directory.is_dir() else f"{directory} is not a directory."
        raise CheckpointError(cause, "Pass a Hugging Face checkpoint directory.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).", RESTORE) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.", RESTORE)
    return values
