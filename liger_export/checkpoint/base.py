"""The pretrained model that ``linearize`` starts from: a Hugging Face checkpoint or a GGUF file."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from liger_export.checkpoint.gguf import GgufModel
from liger_export.checkpoint.reader import Checkpoint
from liger_export.config import read_config_json
from liger_export.errors import CheckpointError
from liger_export.files import CARRIED_FILES, copy_files

__all__ = ["BaseModel", "find_base", "open_base"]

DOWNLOADED_FILES = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja"]


class BaseModel(Protocol):
    """A pretrained model."""

    @property
    def config_values(self) -> dict[str, Any]:
        """The values of its ``config.json``."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Its tensors."""

    def write_companions(self, directory: Path) -> None:
        """Write its tokenizer and ``generation_config.json`` to a directory."""


@dataclass(frozen=True)
class _DirectoryModel:
    """A model in a Hugging Face checkpoint directory."""

    directory: Path
    config_values: dict[str, Any]

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.directory)

    def write_companions(self, directory: Path) -> None:
        copy_files(CARRIED_FILES, self.directory, directory)


def open_base(path: Path) -> BaseModel:
    """Open a checkpoint directory or a GGUF file, without tensor data. A directory's weights are opened when used.

    Raises:
        CheckpointError: it is incomplete or damaged.
        UnsupportedModelError: it is a GGUF file with an unsupported architecture, setting, tensor or tokenizer.
    """
    if path.is_file():
        return GgufModel.open(path)
    return _DirectoryModel(path, read_config_json(path))


def find_base(base: str) -> Path:
    """Return the local checkpoint directory or GGUF file of a base, downloading it if necessary.

    Args:
        base: checkpoint directory, GGUF file or directory with one, or a Hub ID: ``owner/name`` or
            ``owner/name:FILE.gguf``.

    Raises:
        CheckpointError: it cannot be downloaded, or a directory has several GGUF files.
    """
    path = Path(base)
    if path.exists() or base.partition(":")[0].count("/") != 1 or base.startswith((".", "/", "~")):
        return _with_gguf(path)
    try:
        return _download(base)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{base} is not a local path and cannot be downloaded from the Hugging Face Hub ({error}).",
            "Pass the path of a Hugging Face checkpoint directory or of a GGUF file.",
        ) from error


def _with_gguf(path: Path) -> Path:
    """The GGUF file of a directory that has one and no safetensors, else the path itself."""
    names = sorted(file.name for file in path.glob("*.gguf"))
    if not names or any(path.glob("*.safetensors")):
        return path
    return path / _only(names, str(path), "/")


def _download(base: str) -> Path:
    """Download a checkpoint, or the only GGUF file of a repository that has no safetensors, or a named GGUF file."""
    from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download

    repository, _, name = base.partition(":")
    if not name:
        directory = Path(snapshot_download(repository, allow_patterns=DOWNLOADED_FILES))
        if any(directory.glob("*.safetensors")):
            return directory
        names = sorted(file for file in list_repo_files(repository) if file.endswith(".gguf"))
        if not names:
            return directory
        name = _only(names, repository, ":")
    return Path(hf_hub_download(repository, name))


def _only(names: list[str], where: str, separator: str) -> str:
    if len(names) > 1:
        raise CheckpointError(
            f"{where} has {len(names)} GGUF files: {', '.join(names)}.",
            f"Pass one of them, such as {where}{separator}{names[0]}.",
        )
    return names[0]
