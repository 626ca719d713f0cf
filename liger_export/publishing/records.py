"""Records of the files in an output directory, which prove that this project wrote them."""

import json
from importlib.metadata import version
from pathlib import Path

from liger_export.errors import OutputError
from liger_export.files import read_json
from liger_export.package import MANIFEST_FILE, REPORT_FILE
from liger_export.partials import remove_leftovers

__all__ = ["RECORD_FILE", "require_recorded", "write_record"]

RECORD_FILE = ".liger-export"  # in directories other than packages: a package's manifest lists its files
UNLISTED = {MANIFEST_FILE: {MANIFEST_FILE, REPORT_FILE}, RECORD_FILE: {RECORD_FILE}}


def write_record(directory: Path) -> None:
    """Record the files of a new directory, unless its manifest does."""
    if _read_record(directory, MANIFEST_FILE) is None:
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        files = {path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size} for path in paths}
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
    for path in sorted(directory.rglob("*")):
        if source is None:
            raise OutputError(f"{directory} was not written by liger-export.", fix)
        if not _is_recorded(path, path.relative_to(directory).as_posix(), sizes, UNLISTED[source]):
            raise OutputError(f"{path} was not written by liger-export, or has changed since.", fix)


def _read_record(directory: Path, name: str) -> dict[str, int] | None:
    """Read the sizes of the files that are recorded in a file. Returns None if it is not a record of this project."""
    try:
        values = read_json(directory / name)
        sizes = {file: entry["bytes"] for file, entry in values["files"].items()}
        return sizes if isinstance(values["liger_export"], str) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_recorded(path: Path, name: str, sizes: dict[str, int], unlisted: set[str]) -> bool:
    """Return True for a recorded file of its recorded size, and for a folder that has recorded files."""
    if path.is_symlink() or not path.is_file():
        return path.is_dir() and not path.is_symlink() and any(file.startswith(f"{name}/") for file in sizes)
    return name in unlisted or path.stat().st_size == sizes.get(name)
