"""A shorter start of the functions that kernels call in Triton's interpreter."""

import importlib.util
import inspect
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import pytest


@pytest.fixture(scope="session", autouse=True)
def builtins_listed_once() -> Iterator[None]:
    """List the builtins of Triton's language once, not in each call of a function by a kernel."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @cache
    def names(package: object) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def getmembers(package: object) -> list[tuple[str, object]]:
        return [(name, getattr(package, name)) for name in names(package)]

    with patch.object(interpreter, "inspect", SimpleNamespace(**vars(inspect) | {"getmembers": getmembers})):
        yield
