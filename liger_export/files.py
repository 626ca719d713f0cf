"""Atomic writing of files, checks before reading and writing, and file hashes."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from liger_export.errors import CheckpointError, LigerExportError, OutputError
from liger_export.partials import output_errors, partial_of, sync

__all__ = [
    "CARRIED_FILES",
    "TOKENIZER_FILES",
    "TOOL_USE_TEMPLATE",
    "copy_files",
    "is_file_name",
    "new_file",
    "read_json",
    "reading",
    "require_inside",
    "require_regular",
    "require_space",
    "require_writable",
    "sha256_file",
    "sha256_files",
    "sha256_meanwhile",
]

TOKENIZER_CONFIG = "tokenizer_config.json"
LOADED_FROM = {"name_or_path", "_name_or_path"}
TOOL_USE_TEMPLATE = "additional_chat_templates/tool_use.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    TOOL_USE_TEMPLATE,
)
CARRIED_FILES = (*TOKENIZER_FILES, "generation_config.json")  # from the base to the package
MOST_JSON_BYTES = 1 << 28  # the largest tokenizers and indexes have some tens of MB
MOST_JSON_LEVELS = 64
READ_BYTES = 1 << 22


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` and rename it to ``path`` if the block succeeds.

    So the file is replaced as a whole or not at all. It keeps its permissions. A link is followed. Devices and pipes,
    such as ``/dev/stdout``, cannot be replaced, so they are yielded themselves.

    Raises:
        OutputError: it cannot be written.
    """
    require_writable(path)
    if _is_stream(path):
        yield path
        return
    path = path.resolve()
    with output_errors(path), partial_of(path) as partial:
        yield partial
        if path.exists():
            shutil.copymode(path, partial)
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)


def _is_stream(path: Path) -> bool:
    return Path("/dev") in path.absolute().parents or (path.exists() and not path.is_file())


def require_writable(file: Path) -> None:
    """Check that a file can be written, before any long work. Raises OutputError."""
    if file.is_dir():
        raise OutputError(f"{file} is a directory.", "Choose a file.")
    if not file.parent.is_dir():
        raise OutputError(f"{file.parent} is not a directory.", f"Create it, or write {file.name} elsewhere.")
    written = [file] if _is_stream(file) else [file, file.resolve().parent]  # a file is replaced in its directory
    if not all(os.access(path, os.W_OK) for path in written if path.exists()):
        raise OutputError(f"{file} cannot be written.", "Choose a writable file in a writable directory.")


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


@contextmanager
def reading(path: Path, error: type[LigerExportError], fix: str) -> Iterator[None]:
    """Turn whatever a parser or a library raises for a damaged input into an error that names it.

    Args:
        path: the file or directory that the block reads.
        error: class of the error.
        fix: what the user can do.
    """
    try:
        yield
    except LigerExportError:
        raise
    except Exception as cause:
        line = f"{type(cause).__name__}: {cause}".split("\n")[0].rstrip(".: ")
        raise error(f"{path} cannot be read ({line}).", fix) from cause


def require_regular(path: Path) -> None:
    """Check that a path is a file, or a link to one. Reading a pipe or a device could never end.

    Raises:
        OSError: it does not exist.
        ValueError: it is something else.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} is not a regular file")


def is_file_name(name: object) -> bool:
    """Return true for the name of a file in a directory: not a path, and not one that leads out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def read_json(path: Path) -> Any:
    """Read a JSON file of bounded size and depth.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, is too large, or is not JSON in UTF-8.
    """
    require_regular(path)
    if path.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"it has more than {MOST_JSON_BYTES:,} bytes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(values)
    return values


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(MOST_JSON_LEVELS):
        containers = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in containers for item in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_JSON_LEVELS} levels deep")


def require_inside(file: Path, directory: Path) -> None:
    """Check that a file of a checkpoint is not a link out of it, which could make us copy any file.

    Hugging Face's cache consists of links: files of ``snapshots/REVISION`` lie in ``blobs``.

    Raises:
        CheckpointError: the link leads out of the directory and its cache.
    """
    real, root = file.resolve(), directory.resolve()
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    if not any(parent in real.parents for parent in (root, *blobs)):
        raise CheckpointError(f"{file} is a link to {real}, outside the checkpoint.", "Replace the link by the file.")


def copy_files(names: tuple[str, ...], source: Path, target: Path) -> list[str]:
    """Copy the files of ``names`` that exist in ``source`` and return their names.

    The path that ``tokenizer_config.json`` may have been loaded from, on its author's machine, is omitted.

    Raises:
        CheckpointError: one is a link out of ``source``.
    """
    present = [name for name in names if (source / name).is_file()]
    for name in present:
        require_inside(source / name, source)
    for name in present:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    if TOKENIZER_CONFIG in present:
        _omit_path(target / TOKENIZER_CONFIG)
    return present


def _omit_path(file: Path) -> None:
    """Remove ``name_or_path`` from a JSON object. Other files, which their readers refuse, are left as they are."""
    try:
        values = read_json(file)
    except ValueError:
        return
    if isinstance(values, dict) and values.keys() & LOADED_FROM:
        kept = {name: value for name, value in values.items() if name not in LOADED_FROM}
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Hex SHA-256 of each file; two files are read in parallel."""
    paths = list(paths)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(sha256_file, paths), strict=True))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def sha256_meanwhile(paths: Iterable[Path]) -> Iterator[Future[dict[Path, str]]]:
    """Hex SHA-256 of each file, computed in a thread during a block of other work.

    Take the result inside the block: at its end, hashing stops.
    """
    is_over, paths = Event(), list(paths)
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(lambda: {path: _sha256_until(path, is_over) for path in paths})
        finally:
            is_over.set()


def _sha256_until(path: Path, is_over: Event) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as stream:
        while not is_over.is_set() and (count := stream.readinto(buffer)):
            digest.update(buffer[:count])
    return digest.hexdigest()
