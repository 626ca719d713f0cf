"""LoRA adapters in PEFT's format, checked against a checkpoint and merged row by row.

LoRA is arXiv 2106.09685, equation 3: W' = W + (alpha / r) B A; rank-stabilized LoRA (arXiv 2312.03732) divides
by the square root of r.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from liger_export.checkpoint.reader import Checkpoint, open_safetensors
from liger_export.errors import AdapterError, CheckpointError

__all__ = ["BASE_RECORD", "Adapter", "write_base_record"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_RECORD = "liger_adapter.json"
PREFIX = "base_model.model."
UNSUPPORTED = ("use_dora", "modules_to_save", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: for each adapted weight, A [r, in] and B [out, r].

    Attributes:
        directory: the adapter directory.
        scale: factor of B A.
        factors: A and B by the name of the adapted checkpoint tensor.
        base_sha256: fingerprint of the base weights it was trained on; None if the adapter has no record of it.
    """

    directory: Path
    scale: float
    factors: dict[str, tuple[Tensor, Tensor]]
    base_sha256: str | None

    @classmethod
    def open(cls, directory: Path) -> "Adapter":
        """Read an adapter directory.

        Raises:
            AdapterError: it is not a LoRA adapter, is damaged, or uses an unsupported PEFT feature.
        """
        config = _read_json(directory / CONFIG_FILE)
        if config.get("peft_type") != "LORA":
            raise AdapterError(
                f"{directory} is a {config.get('peft_type')} adapter.", "Only LoRA adapters can be merged."
            )
        used = [name for name in UNSUPPORTED if config.get(name)]
        if config.get("bias", "none") != "none":
            used.append("bias")
        if used:
            raise AdapterError(
                f"{directory} uses {', '.join(used)}, which is not supported.", "Train a plain LoRA adapter instead."
            )
        rank, alpha = config.get("r", 0), config.get("lora_alpha", 0)
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise AdapterError(f"{directory / CONFIG_FILE} has r = {rank} and lora_alpha = {alpha}.", "Train again.")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        record = directory / BASE_RECORD
        base = _read_json(record).get("base_sha256") if record.is_file() else None
        factors = _read_factors(directory / WEIGHTS_FILE)
        for name, (a, b) in factors.items():
            if a.dim() != 2 or b.dim() != 2 or not (len(a) == b.shape[1] == rank and a.is_floating_point()):
                raise AdapterError(
                    f"{directory} adapts {name} with A {list(a.shape)} and B {list(b.shape)}, "
                    f"which does not match r = {rank}.",
                    "Train the adapter again.",
                )
        return cls(directory, scale, factors, base)

    def check(self, checkpoint: Checkpoint) -> None:
        """Check that every adapted weight exists in the checkpoint, has the right shape and is the one trained on.

        Raises:
            AdapterError: the adapter was trained on another model.
        """
        fix = "Pass an adapter that was trained on this checkpoint."
        for name, (a, b) in self.factors.items():
            if name not in checkpoint.tensors:
                raise AdapterError(f"{self.directory} adapts {name}, which the checkpoint does not have.", fix)
            shape = checkpoint.tensors[name].shape
            if (b.shape[0], a.shape[1]) != shape:
                raise AdapterError(
                    f"{self.directory} adapts {name} with A {list(a.shape)} and B {list(b.shape)}, which do not fit "
                    f"its shape {list(shape)}.",
                    fix,
                )
        if self.base_sha256 and self.base_sha256 != checkpoint.fingerprint(self.factors):
            raise AdapterError(f"{self.directory} was not trained on the weights in {checkpoint.directory}.", fix)

    def delta(self, name: str, start: int, stop: int) -> Tensor | None:
        """Rows ``start`` to ``stop`` of the update ``scale`` * B A of a weight, float32; None if it is not adapted."""
        if name not in self.factors:
            return None
        a, b = self.factors[name]
        return self.scale * (b[start:stop].float() @ a.float())


def write_base_record(directory: Path, checkpoint: Checkpoint) -> None:
    """Record the fingerprint of the base weights in the directory of a saved adapter."""
    adapter = Adapter.open(directory)
    record = {"format_version": 1, "base_sha256": checkpoint.fingerprint(adapter.factors)}
    (directory / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise AdapterError(f"{path} is missing.", "Pass the directory in which PEFT saved the adapter.") from None
    except ValueError as error:
        raise AdapterError(f"{path} is not valid JSON ({error}).", "Restore the file.") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{path} does not contain a JSON object.", "Restore the file.")
    return values


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
