"""Atomic writing of output directories, checks before writing, and file hashes."""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from liger_export.errors import OutputError

__all__ = [
    "TOKENIZER_FILES",
    "copy_files",
    "new_directory",
    "require_replaceable",
    "require_space",
    "require_writable",
    "sha256_file",
    "sha256_files",
]

MARKER_FILES = ("manifest.json", "config.json", "adapter_config.json")  # every output directory contains one

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


@contextmanager
def new_directory(path: Path, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` and rename it to ``path`` if the block succeeds.

    Any exception removes the sibling, so ``path`` is either complete or absent. Siblings left behind by killed
    processes are removed first.

    Args:
        path: directory to write.
        overwrite: replace ``path`` if it exists. ``overwrite`` replaces only earlier outputs, never other files.
        inputs: inputs of the command, which are never replaced.

    Raises:
        OutputError: ``path`` exists and may not be replaced, or the disk is full or read-only.
    """
    path = path.absolute()
    require_replaceable(path, overwrite, inputs)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:  # starts before the directory exists, so that an interrupt at any moment removes it
        _create(partial, path)
        yield partial
        _replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise _output_error(path, error) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _create(partial: Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        partial.mkdir()
    except OSError as error:
        raise _output_error(path, error) from error


def require_replaceable(path: Path, overwrite: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Check that writing ``path`` destroys neither an input nor anything but an earlier output.

    Raises:
        OutputError: it would.
    """
    for source in inputs:
        if source.resolve().is_relative_to(path.resolve()):
            raise OutputError(f"{path} is, or contains, an input of this command.", "Choose another output.")
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(f"{path} already exists.", "Choose another output, remove it, or pass --overwrite.")
    written = path.is_dir() and (not any(path.iterdir()) or any((path / name).is_file() for name in MARKER_FILES))
    if not written:
        raise OutputError(f"{path} was not written by liger-export.", "Choose another output, or remove it yourself.")


def _remove_abandoned(path: Path) -> None:
    for sibling in path.parent.glob(f".{path.name}.partial-*"):
        owner = re.search(r"\.partial-(\d+)-", sibling.name)
        if owner and not _is_running(int(owner[1])):
            shutil.rmtree(sibling, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _replace(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = partial.with_name(partial.name + "-old")
    path.rename(old)
    partial.rename(path)
    shutil.rmtree(old) if old.is_dir() else old.unlink()


def _output_error(path: Path, error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "Free some disk space or choose another disk." if full else "Choose a writable directory."
    return OutputError(f"{path} cannot be written: {error.strerror}.", fix)


def require_writable(file: Path) -> None:
    """Check that a file can be written, before any long work. Raises OutputError."""
    if file.is_dir():
        raise OutputError(f"{file} is a directory.", "Choose a file.")
    if not file.parent.is_dir():
        raise OutputError(f"{file.parent} is not a directory.", f"Create it, or write {file.name} elsewhere.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OutputError(f"{file} cannot be written.", "Choose a writable file.")


def require_space(path: Path, nbytes: int) -> None:
    """Check that ``nbytes`` fit on the disk of ``path``, before any long work.

    Raises:
        OutputError: the disk has too little free space.
    """
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise OutputError(
            f"{path} needs {nbytes / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free.",
            "Free some disk space or choose another disk.",
        )


def copy_files(names: tuple[str, ...], source: Path, target: Path) -> list[str]:
    """Copy the files of ``names`` that exist in ``source`` and return their names."""
    present = [name for name in names if (source / name).is_file()]
    for name in present:
        shutil.copyfile(source / name, target / name)
    return present


def sha256_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Hex SHA-256 of each file; two files are read in parallel."""
    paths = list(paths)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(sha256_file, paths), strict=True))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
