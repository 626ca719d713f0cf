"""LoRA adapters in PEFT's format, checked against a checkpoint and merged row by row.

LoRA is arXiv 2106.09685, equation 3: W' = W + (alpha / r) B A; rank-stabilized LoRA (arXiv 2312.03732) divides
by the square root of r.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from liger_export.checkpoint.adapter_config import AdapterConfig, read_object
from liger_export.checkpoint.reader import Checkpoint, open_safetensors
from liger_export.errors import AdapterError, CheckpointError
from liger_export.files import reading

__all__ = ["BASE_RECORD", "Adapter", "Update", "write_base_record"]

WEIGHTS_FILE = "adapter_model.safetensors"
BASE_RECORD = "liger_adapter.json"
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Update:
    """The update ``scale`` * B A of one weight.

    Attributes:
        a: A, [r, in].
        b: B, [out, r].
        scale: factor of the product.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the adapted weight, (out, in)."""
        return self.b.shape[0], self.a.shape[1]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the update, float32."""
        return self.scale * (self.b[start:stop].float() @ self.a.float())


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        directory: the adapter directory.
        updates: by the name of the adapted checkpoint tensor.
        base_sha256: fingerprint of the base weights it was trained on; None if the adapter has no record of it.
    """

    directory: Path
    updates: dict[str, Update]
    base_sha256: str | None

    @classmethod
    def open(cls, directory: Path) -> "Adapter":
        """Read an adapter directory.

        Raises:
            AdapterError: it is not a LoRA adapter, is damaged, or uses an unsupported PEFT feature.
        """
        with reading(directory, AdapterError, "Restore the adapter, or train it again."):
            return cls._open(directory)

    @classmethod
    def _open(cls, directory: Path) -> "Adapter":
        config = AdapterConfig.read(directory)
        record = directory / BASE_RECORD
        base = read_object(record).get("base_sha256") if record.exists() else None
        if not isinstance(base, str | None):
            raise AdapterError(f"{record} has {base!r} as base_sha256.", "Restore the file, or remove it.")
        updates = {}
        for name, (a, b) in _read_factors(directory / WEIGHTS_FILE).items():
            module = name.removesuffix(".weight")
            rank = config.rank_of(module)
            if a.dim() != 2 or b.dim() != 2 or not (len(a) == b.shape[1] == rank and a.is_floating_point()):
                raise AdapterError(
                    f"{directory} adapts {name} with A {list(a.shape)} and B {list(b.shape)}, "
                    f"which does not match r = {rank}.",
                    "Train the adapter again.",
                )
            updates[name] = Update(a, b, config.scale_of(module))
        return cls(directory, updates, base)

    def check(self, checkpoint: Checkpoint) -> None:
        """Check that every adapted weight is used by the model, has the right shape and is the one trained on.

        Raises:
            AdapterError: the adapter was trained on another model, or adapts a tied embedding or head.
        """
        fix = "Pass an adapter that was trained on this checkpoint."
        for name, update in self.updates.items():
            if name in checkpoint.tied:
                raise AdapterError(
                    f"{self.directory} adapts {name}, but the model's embedding and head are one tensor: PEFT changes "
                    "one of them in training and both when it merges.",
                    "Store both tensors and set tie_word_embeddings to false in config.json, or train without them.",
                )
            if name in checkpoint.unused:
                raise AdapterError(f"{self.directory} adapts {name}, which the model does not use.", fix)
            if name not in checkpoint.tensors:
                raise AdapterError(f"{self.directory} adapts {name}, which the checkpoint does not have.", fix)
            shape = checkpoint.tensors[name].shape
            if update.shape != shape:
                raise AdapterError(
                    f"{self.directory} adapts {name} with A {list(update.a.shape)} and B {list(update.b.shape)}, "
                    f"which do not fit its shape {list(shape)}.",
                    fix,
                )
        if self.base_sha256 and self.base_sha256 != checkpoint.fingerprint(self.updates):
            raise AdapterError(f"{self.directory} was not trained on the weights in {checkpoint.directory}.", fix)


def write_base_record(directory: Path, checkpoint: Checkpoint) -> None:
    """Record the fingerprint of the base weights in the directory of a saved adapter."""
    adapter = Adapter.open(directory)
    record = {"format_version": 1, "base_sha256": checkpoint.fingerprint(adapter.updates)}
    (directory / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _read_factors(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    try:
        names = open_safetensors(file)
    except CheckpointError as error:
        raise AdapterError(error.cause, "Restore the file, or train the adapter again.") from error
    halves: dict[str, dict[str, Tensor]] = {}
    with safe_open(file, framework="pt") as opened:
        for name in names:
            module, _, rest = name.removeprefix(PREFIX).rpartition(".lora_")
            if not module or rest not in ("A.weight", "B.weight"):
                raise AdapterError(
                    f"{file} contains {name}, which is not a LoRA factor.", "Train a plain LoRA adapter."
                )
            halves.setdefault(f"{module}.weight", {})[rest[0]] = opened.get_tensor(name)
    lone = [name for name, pair in halves.items() if len(pair) != 2]
    if lone or not halves:
        raise AdapterError(f"{file} lacks an A or B factor{' of ' + lone[0] if lone else ''}.", "Train again.")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
