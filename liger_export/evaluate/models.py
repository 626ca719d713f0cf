"""Models that can be evaluated: a package, a Liger checkpoint or a base checkpoint, all scored the same way."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from liger_export.checkpoint import Adapter, Checkpoint, open_liger
from liger_export.checkpoint.causal_lm import check_causal_lm, load_causal_lm, load_tokenizer, read_vocab_size
from liger_export.config import MODEL_TYPES, Fields, read_config_json, read_end_ids
from liger_export.data import TextEncoder
from liger_export.distributed import processes
from liger_export.errors import InputError, UnsupportedModelError
from liger_export.metrics import PositionScores, score_blocks
from liger_export.modeling import LigerForCausalLM, register
from liger_export.package import MANIFEST_FILE, read_manifest
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.runtime import load, read_tokenizer

__all__ = ["DTYPES", "EvaluatedModel", "open_model"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PIECE = 512  # positions per call: enough to keep a processor busy, few enough to bound the activations
PIECE_LOGITS = 1 << 28  # logits per call, 1 GB in float32: pieces are shorter if the vocabulary is large


class EvaluatedModel(ABC):
    """A model on disk. Opening it checks everything that needs no weights; ``score`` loads the weights.

    Attributes:
        path: the model's directory.
        kind: ``package``, ``liger`` or ``base``.
        adapters: LoRA adapters that are merged when the model is loaded.
        encoder: the model's own tokenizer.
    """

    path: Path
    kind: str
    adapters: tuple[Path, ...] = ()
    encoder: TextEncoder

    @property
    def name(self) -> str:
        """The names of the directory and its adapters, joined by " + "."""
        return " + ".join(path.resolve().name for path in (self.path, *self.adapters))

    @abstractmethod
    def score(self, blocks: Tensor, batch_size: int, progress: Progress = NO_PROGRESS) -> PositionScores:
        """Load the weights and score token blocks, int64 [N, T]. For the arguments see ``score_blocks``."""


class PackageModel(EvaluatedModel):
    """A package, run by ONNX Runtime, one sequence at a time."""

    kind = "package"

    def __init__(self, path: Path) -> None:
        self.path = path
        config = read_manifest(path).model_config
        self.encoder = TextEncoder.of(path, read_tokenizer(path), config)

    def score(self, blocks: Tensor, batch_size: int, progress: Progress = NO_PROGRESS) -> PositionScores:
        """Score block by block; ``batch_size`` is ignored. Raises PackageError if a file was changed."""
        session = load(self.path)

        def read(batch: Tensor) -> Iterator[Tensor]:
            session.reset()
            for piece in batch[0].split(PIECE):
                yield torch.from_numpy(session.all_logits(piece.tolist()))[None]

        return score_blocks(read, blocks, 1, "cpu", progress)


class TorchModel(EvaluatedModel):
    """A checkpoint, run by PyTorch. Its model type is one of transformers' own or one of Liger's."""

    def __init__(self, path: Path, adapters: tuple[Path, ...], device: str | None, dtype: str) -> None:
        register()
        self.path, self.adapters = path, adapters
        self.device, self.dtype = _device(device), DTYPES[dtype]
        is_liger = read_config_json(path).get("model_type") in MODEL_TYPES
        self.kind = "liger" if is_liger else "base"
        if not is_liger:
            check_causal_lm(path)
        weights = open_liger(path).weights if is_liger else Checkpoint.open(path)
        weights.check_layers(Fields(read_config_json(path)).integer("num_hidden_layers", 0))
        for adapter in adapters:
            Adapter.open(adapter).check(weights)
        self.encoder = TextEncoder(path, load_tokenizer(path), read_vocab_size(path), read_end_ids(path))

    def score(self, blocks: Tensor, batch_size: int, progress: Progress = NO_PROGRESS) -> PositionScores:
        """Score batches of blocks. Raises CheckpointError if the config and the weights do not match."""
        model = self.load()
        # A recurrent model of transformers' own may be unable to continue by more than one token per call.
        continues = isinstance(model, LigerForCausalLM) or not model._is_stateful
        most = (
            max(1, min(PIECE, PIECE_LOGITS // (batch_size * self.encoder.vocab_size))) if continues else blocks.shape[1]
        )

        def read(batch: Tensor) -> Iterator[Tensor]:
            cache = None
            for start in range(0, batch.shape[1], most):
                if start and cache is None:
                    raise UnsupportedModelError(
                        f"{self.path} has no cache, so it can read at most {most} tokens.",
                        f"Pass --sequence-length {most + 1}.",
                    )
                output = model(input_ids=batch[:, start : start + most], past_key_values=cache, use_cache=True)
                cache = output.get("past_key_values")
                yield output.logits

        return score_blocks(read, blocks, batch_size, self.device, progress)

    def load(self) -> Any:
        """Load the model onto its device, with its adapters merged."""
        model = load_causal_lm(self.path, self.dtype)
        for adapter in self.adapters:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        return model.to(self.device).eval()


def open_model(
    path: Path, adapters: tuple[Path, ...] = (), device: str | None = None, dtype: str = "float32"
) -> EvaluatedModel:
    """Open a package, a Liger checkpoint or a base checkpoint, without reading its weights.

    Args:
        path: the model's directory.
        adapters: LoRA adapters for a checkpoint.
        device: device of PyTorch models, such as ``cuda:0``; default: a GPU if there is one.
        dtype: dtype of PyTorch models, a key of ``DTYPES``.

    Raises:
        InputError: ``path`` is none of these, adapters are given for a package, or the device or dtype is unknown.
        PackageError, CheckpointError, UnsupportedModelError, AdapterError: a directory is damaged or does not match.
    """
    if dtype not in DTYPES:
        raise InputError(f"There is no dtype {dtype!r} to evaluate in.", f"Choose one of {', '.join(DTYPES)}.")
    if (path / MANIFEST_FILE).is_file():
        if adapters:
            raise InputError(
                f"{path} is a package, which takes no adapter.", "Pass adapters to convert, which merges them."
            )
        return PackageModel(path)
    if not (path / "config.json").is_file():
        fix = "Pass it with --adapter, after its checkpoint." if (path / "adapter_config.json").is_file() else ""
        raise InputError(
            f"{path} is neither a package ({MANIFEST_FILE}) nor a checkpoint (config.json).",
            fix or "Pass a directory written by convert, linearize or transformers' save_pretrained.",
        )
    return TorchModel(path, adapters, device, dtype)


def _device(name: str | None) -> torch.device:
    if name is None:
        device: torch.device = processes().device
        return device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # raised for an unknown, a missing and an unsupported device
        cause = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"There is no device {name!r} ({cause}).", "Pass cpu, or a GPU such as cuda:0.") from error
