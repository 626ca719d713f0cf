"""What can be evaluated: a package, a Liger checkpoint, a base checkpoint, each scored alike."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from liger_export.checkpoint import Adapter, Checkpoint, open_liger
from liger_export.config import MODEL_TYPES, read_config_json
from liger_export.distributed import processes
from liger_export.errors import CheckpointError, InputError, UnsupportedModelError
from liger_export.metrics import PositionScores, score_blocks
from liger_export.modeling import LigerForCausalLM, register
from liger_export.package import MANIFEST_FILE, read_manifest
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.runtime import load, read_tokenizer

__all__ = ["DTYPES", "EvaluatedModel", "open_model"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PIECE = 512  # positions read at once: enough to fill a processor, few enough to bound activations
PIECE_LOGITS = 1 << 28  # 1 GB in float32; with a large vocabulary pieces are shorter


class EvaluatedModel(ABC):
    """A model on disk. Opening it checks what can be checked without its weights; ``score`` loads them.

    Attributes:
        path: its directory.
        kind: ``package``, ``liger`` or ``base``.
        adapters: LoRA adapters it is read with.
        tokenizer: its own.
        vocab_size: tokens it knows.
    """

    path: Path
    kind: str
    adapters: tuple[Path, ...] = ()
    tokenizer: Any
    vocab_size: int

    @property
    def name(self) -> str:
        """The directory's name, and its adapters'."""
        return " + ".join(path.resolve().name for path in (self.path, *self.adapters))

    @abstractmethod
    def score(self, blocks: Tensor, batch_size: int, progress: Progress = NO_PROGRESS) -> PositionScores:
        """Load the weights and score token blocks, int64 [N, T]; arguments as ``score_blocks``."""


class PackageModel(EvaluatedModel):
    """A package, read with ONNX Runtime, one sequence after another."""

    kind = "package"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vocab_size = read_manifest(path).model_config.vocab_size
        self.tokenizer: Tokenizer = read_tokenizer(path)

    def score(self, blocks: Tensor, batch_size: int, progress: Progress = NO_PROGRESS) -> PositionScores:
        """As ``EvaluatedModel.score``, block by block. Raises PackageError if a file is not as it was written."""
        session = load(self.path)

        def read(batch: Tensor) -> Iterator[Tensor]:
            session.reset()
            for piece in batch[0].split(PIECE):
                yield torch.from_numpy(session.all_logits(piece.tolist()))[None]

        return score_blocks(read, blocks, 1, "cpu", progress)


class TorchModel(EvaluatedModel):
    """A checkpoint, read with PyTorch; of a type that transformers has or this project adds."""

    def __init__(self, path: Path, adapters: tuple[Path, ...], device: str | None, dtype: str) -> None:
        register()
        self.path, self.adapters = path, adapters
        self.device, self.dtype = _device(device), DTYPES[dtype]
        model_type = read_config_json(path).get("model_type")
        is_liger = model_type in MODEL_TYPES
        self.kind = "liger" if is_liger else "base"
        if not is_liger and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise UnsupportedModelError(
                f"{path} has model_type {model_type!r}, which is no causal language model that transformers knows.",
                "Pass a checkpoint that AutoModelForCausalLM loads without code of its own.",
            )
        weights = open_liger(path).weights if is_liger else Checkpoint.open(path)
        for adapter in adapters:
            Adapter.open(adapter).check(weights)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.vocab_size = AutoConfig.from_pretrained(path).get_text_config().vocab_size
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise _unloadable(path, "tokenizer", error) from error

    def score(self, blocks: Tensor, batch_size: int, progress: Progress = NO_PROGRESS) -> PositionScores:
        """As ``EvaluatedModel.score``. Raises CheckpointError if config and weights do not fit each other."""
        model = self._load()
        # A recurrent model of transformers' own may not continue by several tokens at once.
        continues = isinstance(model, LigerForCausalLM) or not model._is_stateful
        most = max(1, min(PIECE, PIECE_LOGITS // (batch_size * self.vocab_size))) if continues else blocks.shape[1]

        def read(batch: Tensor) -> Iterator[Tensor]:
            cache = None
            for start in range(0, batch.shape[1], most):
                if start and cache is None:
                    raise UnsupportedModelError(
                        f"{self.path} keeps no cache, so it reads at most {most} tokens.",
                        f"Pass --sequence-length {most + 1}.",
                    )
                output = model(input_ids=batch[:, start : start + most], past_key_values=cache, use_cache=True)
                cache = output.get("past_key_values")
                yield output.logits

        return score_blocks(read, blocks, batch_size, self.device, progress)

    def _load(self) -> Any:
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=self.dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            raise _unloadable(self.path, "model", error) from error
        if found["missing_keys"]:
            raise CheckpointError(
                f"{self.path} lacks {', '.join(sorted(found['missing_keys'])[:3])}.", "Restore the original checkpoint."
            )
        for adapter in self.adapters:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        return model.to(self.device).eval()


def open_model(
    path: Path, adapters: tuple[Path, ...] = (), device: str | None = None, dtype: str = "float32"
) -> EvaluatedModel:
    """Open a package, a Liger checkpoint or a base checkpoint, without reading its weights yet.

    Args:
        path: the directory.
        adapters: LoRA adapters for a checkpoint.
        device: of PyTorch models, such as ``cuda:0``; default: a GPU if there is one.
        dtype: of PyTorch models, a key of ``DTYPES``.

    Raises:
        InputError: ``path`` is none of these, adapters are given for a package, or there is no such device or dtype.
        PackageError, CheckpointError, UnsupportedModelError, AdapterError: a directory is damaged or does not fit.
    """
    if dtype not in DTYPES:
        raise InputError(f"There is no dtype {dtype!r} to evaluate in.", f"Choose one of {', '.join(DTYPES)}.")
    if (path / MANIFEST_FILE).is_file():
        if adapters:
            raise InputError(
                f"{path} is a package, which takes no adapter.", "Give adapters to convert; it merges them."
            )
        return PackageModel(path)
    if not (path / "config.json").is_file():
        fix = "Pass it with --adapter, after its checkpoint." if (path / "adapter_config.json").is_file() else ""
        raise InputError(
            f"{path} is neither a package ({MANIFEST_FILE}) nor a checkpoint (config.json).",
            fix or "Pass a directory that convert, linearize or transformers' save_pretrained wrote.",
        )
    return TorchModel(path, adapters, device, dtype)


def _device(name: str | None) -> torch.device:
    if name is None:
        device: torch.device = processes().device
        return device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # what torch raises for unknown, absent and not compiled in
        raise InputError(f"There is no device {name!r} ({_first_line(error)}).", "Try cpu, or cuda:0.") from error


def _unloadable(path: Path, what: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The {what} of {path} cannot be loaded ({_first_line(error)}).", "Restore the original checkpoint."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
