"""Commands that add optional dependencies (extras) to this installation. The project is not on PyPI."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from liger_export.errors import EnvironmentMismatchError

__all__ = ["install_command", "required_extra"]

NAME = "liger-export"
CHECKOUT = Path(__file__).parents[1]


def install_command(extra: str, *options: str) -> str:
    """Return the shell command that adds an extra to the running Python.

    It installs from the source that pip recorded in ``direct_url.json`` (PEP 610): a directory, an archive or a Git
    repository. Without a record it installs from the checkout that this module is in, or by name.

    Args:
        extra: a key of ``project.optional-dependencies``.
        options: further options of ``pip install``.
    """
    return shlex.join([sys.executable, "-m", "pip", "install", *options, *_requirement(extra)])


@contextmanager
def required_extra(extra: str, what: str) -> Iterator[None]:
    """Report a library of an extra that is not installed, with the command that adds it. Imports go inside.

    Args:
        extra: the extra that contains the libraries.
        what: the subject of the message, such as ``This command``.

    Raises:
        EnvironmentMismatchError: a library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise EnvironmentMismatchError(
            f"{what} needs {error.name}, which is not installed.", f"Run: {install_command(extra)}"
        ) from error


def _requirement(extra: str) -> list[str]:
    """Arguments of ``pip install`` that name this project with an extra."""
    record = _record()
    if "vcs_info" in record:
        version = record["vcs_info"]["commit_id"]
        return [f"{NAME}[{extra}] @ {record['vcs_info']['vcs']}+{record['url']}@{version}"]
    url = urlparse(record.get("url", ""))
    if url.scheme == "file":
        path = Path(url2pathname(url.path))
        if path.exists():  # a wheel may have been deleted
            editable = record.get("dir_info", {}).get("editable", False)
            return [*(["--editable"] if editable else []), f"{path}[{extra}]"]
    elif url.scheme:
        return [f"{NAME}[{extra}] @ {record['url']}"]
    return [f"{CHECKOUT}[{extra}]"] if (CHECKOUT / "pyproject.toml").is_file() else [f"{NAME}[{extra}]"]


def _record() -> dict[str, Any]:
    """Return pip's record of where this installation came from; empty if there is none."""
    try:
        text = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return {}
    record: dict[str, Any] = json.loads(text) if text else {}
    return record
