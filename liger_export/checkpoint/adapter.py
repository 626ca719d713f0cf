"""LoRA adapters as PEFT saves them: checked against a checkpoint and merged row by row.

LoRA is arXiv 2106.09685, equation 3: W' = W + (alpha / r) B A; rank-stabilized LoRA (arXiv 2312.03732) divides
by the root of r.
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
        directory: where it was read from.
        scale: factor of B A.
        factors: per checkpoint tensor name, its A and B.
        base_sha256: fingerprint of the adapted base weights it was trained on, if it records one.
    """

    directory: Path
    scale: float
    factors: dict[str, tuple[Tensor, Tensor]]
    base_sha256: str | None

    @classmethod
    def open(cls, directory: Path) -> "Adapter":
        """Read an adapter directory.

        Raises:
            AdapterError: it is no LoRA adapter, is damaged, or uses a PEFT feature that is not supported.
        """
        config = _read_json(directory / CONFIG_FILE)
        if config.get("peft_type") != "LORA":
            raise AdapterError(f"{directory} is a {config.get('peft_type')} adapter.", "Only LoRA can be merged.")
        used = [name for name in UNSUPPORTED if config.get(name)]
        if config.get("bias", "none") != "none":
            used.append("bias")
        if used:
            raise AdapterError(f"{directory} uses {', '.join(used)}.", "Train a plain LoRA adapter instead.")
        rank, alpha = config.get("r", 0), config.get("lora_alpha", 0)
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise AdapterError(f"{directory / CONFIG_FILE} has r = {rank} and lora_alpha = {alpha}.", "Train it again.")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        record = directory / BASE_RECORD
        base = _read_json(record).get("base_sha256") if record.is_file() else None
        factors = _read_factors(directory / WEIGHTS_FILE)
        for name, (a, b) in factors.items():
            if a.dim() != 2 or b.dim() != 2 or not (len(a) == b.shape[1] == rank and a.is_floating_point()):
                raise AdapterError(
                    f"{directory} adapts {name} with A {list(a.shape)} and B {list(b.shape)}, but says r = {rank}.",
                    "Train it again.",
                )
        return cls(directory, scale, factors, base)

    def check(self, checkpoint: Checkpoint) -> None:
        """Check that every adapted weight exists in the checkpoint, fits, and is the one trained on.

        Raises:
            AdapterError: it is an adapter for another model.
        """
        fix = "Pass the adapter that was trained on this checkpoint."
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
            raise AdapterError(f"{self.directory} was trained on other weights than {checkpoint.directory} holds.", fix)

    def delta(self, name: str, start: int, stop: int) -> Tensor | None:
        """Rows of the update (alpha / r) B A of one weight, float32, or None if it is not adapted."""
        if name not in self.factors:
            return None
        a, b = self.factors[name]
        return self.scale * (b[start:stop].float() @ a.float())


def write_base_record(directory: Path, checkpoint: Checkpoint) -> None:
    """Write beside a saved adapter which base weights it was trained on."""
    adapter = Adapter.open(directory)
    record = {"format_version": 1, "base_sha256": checkpoint.fingerprint(adapter.factors)}
    (directory / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise AdapterError(f"{path} is missing.", "Pass the directory that PEFT saved the adapter to.") from None
    except ValueError as error:
        raise AdapterError(f"{path} is not valid JSON ({error}).", "Restore the file.") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{path} does not hold a JSON object.", "Restore the file.")
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
                raise AdapterError(f"{file} holds {name}, which is no LoRA factor.", "Train a plain LoRA adapter.")
            halves.setdefault(f"{module}.weight", {})[rest[0]] = opened.get_tensor(name)
    lone = [name for name, pair in halves.items() if len(pair) != 2]
    if lone or not halves:
        raise AdapterError(f"{file} lacks an A or a B factor{' of ' + lone[0] if lone else ''}.", "Train it again.")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
