"""Parametrized tests of which ``make check`` runs only some cells."""

from collections.abc import Container, Iterable
from typing import Any

import pytest

__all__ = ["slow_except"]


def slow_except(fast: Container[Any], cells: Iterable[Any]) -> list[Any]:
    """Mark cells as slow, except those in ``fast``. A cell is a value, or a tuple of values."""
    return [
        cell if cell in fast else pytest.param(*(cell if isinstance(cell, tuple) else (cell,)), marks=pytest.mark.slow)
        for cell in cells
    ]
