"""Lazy, strict reading of safetensors checkpoints."""

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from liger_export.checkpoint.names import expected_tensors, is_ignored, learned_tensors
from liger_export.config import LigerConfig, read_config_json
from liger_export.errors import CheckpointError
from liger_export.files import is_file_name, read_json, require_inside, require_regular
from liger_export.precision import EMBEDDING, LM_HEAD

__all__ = ["Checkpoint", "TensorInfo", "open_safetensors"]

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Location, shape and dtype of a stored tensor.

    Attributes:
        file: the safetensors file.
        stored_name: the tensor's name in that file.
        shape: the tensor's shape.
        dtype: safetensors' name of the dtype, such as ``BF16``.
    """

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop`` of the first dimension, in the stored dtype.

        Each read opens and closes the file, so only one tensor's pages stay in memory.
        """
        with safe_open(self.file, framework="pt") as opened:
            rows: Tensor = opened.get_slice(self.stored_name)[start:stop]
            return rows.clone()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, read on request.

    Attributes:
        directory: the checkpoint directory, or the GGUF file.
        tensors: the stored tensors, by name.
        tied: names of the tied embedding and head; empty if they are not tied, or if the config is unknown.
        unused: names of other stored tensors that the model does not use; empty if the config is unknown.
        is_converted: true if reading converts the tensors, so that they differ from those in the files.
    """

    directory: Path
    tensors: dict[str, TensorInfo]
    tied: tuple[str, ...] = ()
    unused: frozenset[str] = frozenset()
    is_converted: bool = False

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Read the headers of all safetensors files, without tensor data.

        Raises:
            CheckpointError: a file is missing, truncated, a link out of the directory or not a safetensors file, or the
                directory has two sets of weights.
        """
        tensors: dict[str, TensorInfo] = {}
        for file in _weight_files(directory):
            require_inside(file, directory)
            for name, info in open_safetensors(file).items():
                if name in tensors:
                    raise CheckpointError(
                        f"{directory} contains {name} twice, in {tensors[name].file.name} and {file.name}.",
                        "Restore the original checkpoint, or save the model again to an empty directory.",
                    )
                tensors[name] = info
        return cls(directory, tensors)

    @property
    def files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted({info.file for info in self.tensors.values()})

    def check_layers(self, layers: int) -> None:
        """Check that there are tensors for a number of layers, before anything of that size is built.

        Raises:
            CheckpointError: there are fewer tensors than layers.
        """
        if layers > len(self.tensors):
            raise CheckpointError(
                f"config.json has {layers} layers, but {self.directory} contains {len(self.tensors)} tensors.",
                "The weights and config.json do not match: restore the original checkpoint.",
            )

    def check(self, config: LigerConfig, excluded: Container[str] = ()) -> None:
        """Compare with the tensors that the config requires.

        Args:
            config: the model.
            excluded: names of the model's tensors that this checkpoint does not contain.

        Raises:
            CheckpointError: a tensor is missing or unexpected, or has the wrong shape or dtype, or a tied head differs
                from the embedding.
        """
        self.check_layers(config.num_hidden_layers)
        expected = {name: shape for name, shape in expected_tensors(config).items() if name not in excluded}
        fix = "The weights and config.json do not match: restore the original checkpoint."
        if self.is_converted:
            fix = "The tensors and metadata of the file do not match: download it or convert the model again."
        missing = [name for name in expected if name not in self.tensors]
        if missing and set(missing) <= set(learned_tensors(config)):
            fix = (
                "The mixer learns these tensors: linearize the base again, or pass the checkpoint that finetune wrote."
            )
        if missing:
            raise CheckpointError(f"{self.directory} lacks {_listed(missing)}.", fix)
        extra = [name for name in self.tensors if name not in expected and not is_ignored(name, config)]
        if extra:
            raise CheckpointError(f"{self.directory} contains unexpected {_listed(extra)}.", fix)
        for name, shape in expected.items():
            info = self.tensors[name]
            if info.shape != shape:
                raise CheckpointError(
                    f"{name} has shape {list(info.shape)} instead of {list(shape)} in {self.directory}.", fix
                )
            if info.dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{name} is stored as {info.dtype}.", "Use an unquantized checkpoint (F32, F16 or BF16)."
                )
        if config.tie_word_embeddings and LM_HEAD in self.tensors:
            self._check_tied_head()

    def _check_tied_head(self) -> None:
        """Check that a stored copy of the tied head equals the embedding. Raises CheckpointError."""
        is_same_shape = self.tensors[LM_HEAD].shape == self.tensors[EMBEDDING].shape
        if is_same_shape and all(
            _are_equal(self.read_rows(EMBEDDING, *rows), self.read_rows(LM_HEAD, *rows))
            for rows in self.row_blocks(EMBEDDING, BLOCK_BYTES)
        ):
            return
        raise CheckpointError(
            f"config.json ties the head to the embedding, but {LM_HEAD} differs from {EMBEDDING} in {self.directory}.",
            "Set tie_word_embeddings to false in config.json to use the stored head, or remove the stored head.",
        )

    def read(self, name: str) -> Tensor:
        """Read a whole tensor, in its stored dtype."""
        return self.read_rows(name, 0, self.tensors[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop`` of a tensor's first dimension, in its stored dtype."""
        return self.tensors[name].read(start, stop)

    def row_blocks(self, name: str, block_bytes: int) -> Iterator[tuple[int, int]]:
        """Split a tensor's rows into ranges of about ``block_bytes`` in float32."""
        rows, *rest = self.tensors[name].shape
        step = max(1, block_bytes // (4 * torch.Size(rest).numel()))
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def fingerprint(self, names: Iterable[str]) -> str:
        """SHA-256 of the names, dtypes, shapes and bytes of the named tensors, independent of the sharding."""
        digest = hashlib.sha256()
        for name in sorted(names):
            info = self.tensors[name]
            digest.update(f"{name} {info.dtype} {list(info.shape)}\n".encode())
            for start, stop in self.row_blocks(name, BLOCK_BYTES):
                digest.update(self.read_rows(name, start, stop).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def open_safetensors(file: Path) -> dict[str, TensorInfo]:
    """Read name, shape and dtype of every tensor in one file.

    Raises:
        CheckpointError: the file is missing, truncated or not a safetensors file.
    """
    try:
        require_regular(file)
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: TensorInfo(file, name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
            }
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing.", "Restore the file from the original checkpoint.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}).", "Download or copy the file again."
        ) from error


def _weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads: ``model.safetensors`` first, then the shards of the index."""
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    _check_named_weights(directory)
    shards = _shards(index) if index.exists() else []
    if not single.exists() and shards:
        return shards
    if single.exists():
        others = [shard.name for shard in shards if shard != single and shard.is_file()]
        if others:
            raise CheckpointError(
                f"{directory} contains two sets of weights: {single.name}, which transformers loads, and the shards of "
                f"{index.name} ({', '.join(others[:2])}{', ...' if len(others) > 2 else ''}).",
                f"Remove {index.name} and its shards, or {single.name}, whichever is older.",
            )
        return [single]  # transformers ignores an index whose shards save_pretrained removed
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise CheckpointError(
            f"{directory} contains only pickled weights, which can run code when loaded.",
            "Save the model as safetensors first.",
        )
    raise CheckpointError(f"{directory} has no {SINGLE_FILE}.", "Pass a Hugging Face checkpoint directory.")


def _shards(index: Path) -> list[Path]:
    try:
        names = set(read_json(index)["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index ({error}).", "Restore the original file.") from error
    for name in names:
        if not is_file_name(name):
            raise CheckpointError(
                f"{index} lists {name!r}, which is not the name of a file beside it.",
                "Put all shards beside the index, under different names, and correct it.",
            )
    return sorted(index.parent / name for name in names)


def _check_named_weights(directory: Path) -> None:
    """Check that config.json does not name the weights, which transformers would follow. Raises CheckpointError."""
    if not (directory / "config.json").exists():
        return
    named = read_config_json(directory).get("transformers_weights")
    if named is not None:
        raise CheckpointError(
            f"config.json in {directory} names {named} as the weights (transformers_weights).",
            "Load the model with transformers and save it again with save_pretrained.",
        )


def _are_equal(first: Tensor, second: Tensor) -> bool:
    """Return true for equal values. NaN equals NaN here: ``convert`` reports it."""
    if first.dtype == second.dtype and torch.equal(first, second):
        return True
    return torch.allclose(first.double(), second.double(), rtol=0, atol=0, equal_nan=True)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"tensor{'s' if len(names) > 1 else ''} {shown}"
