"""The fields of a request: each is read, or refused by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from liger_export.serve.errors import ApiError

__all__ = ["Fields", "bias_of"]


class Fields:
    """Reads fields of a JSON object. ``require_empty`` refuses those that were not read. null counts as absent."""

    def __init__(self, values: object, path: str = "") -> None:
        """Start to read. ``path`` is the name of the object in error messages."""
        if not isinstance(values, dict):
            raise ApiError(400, f"{path or 'The body'} is not a JSON object.", param=path or None, code="invalid_type")
        self._values = {name: value for name, value in values.items() if value is not None}
        self._path = path

    def text(self, name: str) -> str | None:
        """Read a string."""
        value: str | None = self._read(name, "a string", lambda value: isinstance(value, str))
        return value

    def flag(self, name: str) -> bool | None:
        """Read true or false."""
        value: bool | None = self._read(name, "true or false", lambda value: isinstance(value, bool))
        return value

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Read an integer from a range."""
        kind = f"an integer from {least} to {most}"
        value: int | None = self._read(name, kind, lambda value: type(value) is int and least <= value <= most)
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        """Read a number from a range."""
        value: float | None = self._read(
            name, f"a number from {least} to {most}", lambda value: _is_in(value, least, most)
        )
        return value

    def list_of(self, name: str, kind: type, most: int) -> tuple[Any, ...] | None:
        """Read a list of strings or integers."""
        described = f"a list of at most {most} {'strings' if kind is str else 'integers'}"
        found = self._read(name, described, lambda value: _is_list_of(value, kind, most))
        return None if found is None else tuple(found)

    def object_of(self, name: str) -> "Fields | None":
        """Read an object, whose fields are read in turn."""
        values = self._values.pop(name, None)
        return None if values is None else Fields(values, self._name(name))

    def any(self, name: str) -> Any:
        """Read a value that the caller checks; None if it is absent."""
        return self._values.pop(name, None)

    def neutral(self, name: str, *values: object) -> None:
        """Accept a field that is not supported where its value asks for nothing."""
        if any(self._values.get(name) == value for value in values):
            del self._values[name]

    def require_empty(self, what: str) -> None:
        """Refuse the fields that were not read. ``what`` names the thing that does not support them."""
        for name in self._values:
            path = self._name(name)
            raise ApiError(400, f"{what} does not support {path!r}. Omit it.", param=path, code="unsupported_field")

    def wrong(self, name: str, allowed: str, code: str = "invalid_value") -> ApiError:
        """Return the error for a field with a wrong value."""
        return ApiError(400, f"{self._name(name)!r} must be {allowed}.", param=self._name(name), code=code)

    def _read(self, name: str, allowed: str, is_valid: Callable[[Any], bool]) -> Any:
        value = self._values.pop(name, None)
        if value is not None and not is_valid(value):
            raise self.wrong(name, allowed)
        return value

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def _is_in(value: object, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and least <= value <= most and math.isfinite(value)  # type: ignore[operator, arg-type]


def _is_list_of(value: object, kind: type, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(each) is kind for each in value)


def bias_of(fields: Fields, name: str, vocab_size: int) -> dict[int, float]:
    """Read a bias of logits: an object of numbers from -100 to 100 by token id."""
    values = fields.any(name)
    allowed = "an object of numbers from -100 to 100 by token id"
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(_is_in(bias, -100, 100) for bias in values.values()):
        raise fields.wrong(name, allowed)
    if not all(key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size for key in values):
        raise fields.wrong(name, allowed)
    return {int(key): float(bias) for key, bias in values.items()}
