"""Atomic writing of output directories."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liger_export.errors import OutputError
from liger_export.partials import (
    old_of,
    output_error,
    output_errors,
    partial_of,
    remove_leftovers,
    sync,
    sync_tree,
)
from liger_export.publishing.records import require_recorded, write_record
from liger_export.publishing.renames import exchange, rename_new

__all__ = ["new_directory", "require_replaceable"]


@contextmanager
def new_directory(path: Path, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` and rename it to ``path`` if the block succeeds.

    At any moment ``path`` is complete or absent, and an output that is replaced is there until the new one is. Nothing
    that appears at ``path`` while the block runs is replaced, unless ``overwrite`` is true and it is an output too.

    Args:
        path: directory to write.
        overwrite: replace ``path`` if it exists. Only outputs of this project are replaced, and empty directories.
        inputs: inputs of the command, which are never replaced.

    Raises:
        OutputError: ``path`` exists and may not be replaced, or the disk is full or read-only.
    """
    path = path.absolute()
    require_replaceable(path, overwrite, inputs)
    _make(path.parent, path, parents=True, exist_ok=True)
    with output_errors(path), partial_of(path) as partial:
        _make(partial, path)
        yield partial
        write_record(partial)
        sync_tree(partial)
        _publish(partial, path, overwrite, inputs)
        sync(path.parent)


def require_replaceable(path: Path, overwrite: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Check that writing ``path`` destroys neither an input nor anything but an earlier output.

    Leftovers of killed runs are removed, and an output that one was about to replace is put back.

    Raises:
        OutputError: it would, or ``path`` cannot be renamed.
    """
    remove_leftovers(path.absolute())
    _check_replaceable(path, overwrite, inputs)


def _check_replaceable(path: Path, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    for source in inputs:
        if source.resolve().is_relative_to(path.resolve()):
            raise OutputError(f"{path} is, or contains, an input of this command.", "Choose another output.")
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link.", "Pass the path that it leads to, or remove it.")
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(f"{path} already exists.", "Choose another output, remove it, or pass --overwrite.")
    if path.is_mount():
        raise OutputError(f"{path} is a mount point, which cannot be replaced.", "Choose a directory inside it.")
    if not path.is_dir():
        raise OutputError(f"{path} is not a directory.", "Choose another output, or remove it yourself.")
    require_recorded(path)


def _make(directory: Path, path: Path, *, parents: bool = False, exist_ok: bool = False) -> None:
    try:
        directory.mkdir(parents=parents, exist_ok=exist_ok)
    except OSError as error:
        raise output_error(path, error) from error


def _publish(partial: Path, path: Path, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    if rename_new(partial, path):
        return
    _check_replaceable(path, overwrite, inputs)
    _swap(partial, path)
    try:
        require_recorded(partial)
    except OutputError:  # something was written into the old output since the check
        _swap(partial, path)
        raise


def _swap(partial: Path, path: Path) -> None:
    """Exchange a partial output and an output. A failure between the renames is undone where ``partial`` is removed."""
    if not exchange(partial, path):
        old = old_of(partial)
        os.rename(path, old)
        os.rename(partial, path)
        os.rename(old, partial)
