"""Records of the files in an output directory, which prove that this project wrote them."""

import json
import os
from importlib.metadata import version
from pathlib import Path

from liger_export.errors import OutputError
from liger_export.package import MANIFEST_FILE, REPORT_FILE
from liger_export.partials import remove_leftovers

__all__ = ["RECORD_FILE", "require_recorded", "write_record"]

RECORD_FILE = ".liger-export"  # in directories other than packages: a package's manifest lists its files
UNLISTED = {MANIFEST_FILE: {MANIFEST_FILE, REPORT_FILE}, RECORD_FILE: {RECORD_FILE}}


def write_record(directory: Path) -> None:
    """Record the files of a new directory, unless its manifest does."""
    if _read_record(directory, MANIFEST_FILE) is None:
        files = {entry.name: {"bytes": entry.stat().st_size} for entry in sorted(directory.iterdir())}
        record = {"liger_export": version("liger-export"), "files": files}
        (directory / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def require_recorded(directory: Path) -> None:
    """Check that this project wrote every file of a directory. An empty directory passes.

    Raises:
        OutputError: a file is not recorded, or its size has changed.
    """
    for name in UNLISTED:
        remove_leftovers(directory / name)
    records = {name: _read_record(directory, name) for name in UNLISTED}
    source, sizes = next(((name, sizes) for name, sizes in records.items() if sizes is not None), (None, {}))
    fix = "Choose another output, or remove it yourself."
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if source is None:
                raise OutputError(f"{directory} was not written by liger-export.", fix)
            if not _is_recorded(entry, sizes, UNLISTED[source]):
                raise OutputError(f"{entry.path} was not written by liger-export, or has changed since.", fix)


def _read_record(directory: Path, name: str) -> dict[str, int] | None:
    """Read the sizes of the files that are recorded in a file. Returns None if that is no record of this project."""
    try:
        values = json.loads((directory / name).read_text(encoding="utf-8"))
        sizes = {file: entry["bytes"] for file, entry in values["files"].items()}
        return sizes if isinstance(values["liger_export"], str) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_recorded(entry: os.DirEntry[str], sizes: dict[str, int], unlisted: set[str]) -> bool:
    if not entry.is_file(follow_symlinks=False):
        return False
    return entry.name in unlisted or entry.stat(follow_symlinks=False).st_size == sizes.get(entry.name)
