"""What is measured: a package in ONNX Runtime, and a transformer with its KV cache in PyTorch.

torch and transformers are imported where a transformer is opened, so that a package's process holds neither.
"""

import warnings
from pathlib import Path
from typing import Any, Protocol

from liger_export.errors import CheckpointError, UnsupportedModelError
from liger_export.runtime import load
from liger_export.runtime.buffers import CPU

__all__ = ["FILLED_ABOVE", "Contender", "PackageContender", "TransformerContender"]

FILLED_ABOVE = 4096  # a transformer's own prefill is quadratic: hours at 32k tokens and a billion parameters


class Contender(Protocol):
    """A model that reads a context and continues it by one token at a time, most likely first.

    Attributes:
        vocab_size: tokens it knows.
    """

    vocab_size: int

    def reads(self, context: int) -> bool:
        """Whether ``prefill`` really reads so many tokens; a cache is filled with random values otherwise."""

    def prefill(self, tokens: list[int]) -> int:
        """Start over, read tokens and return the most likely next one."""

    def step(self, token: int) -> int:
        """Read one token and return the most likely next one."""

    def memory_bytes(self) -> int:
        """Bytes of the tensors that are carried to the next token."""


class PackageContender:
    """A package. Its memory is one set of state tensors; the session has two, and neither grows."""

    def __init__(self, directory: Path, threads: int) -> None:
        """Open a package whose files were checked before. Raises as ``load``."""
        self._session = load(directory, device=CPU, threads=threads)
        self.vocab_size = self._session.manifest.model_config.vocab_size

    def reads(self, context: int) -> bool:
        """Always."""
        return True

    def prefill(self, tokens: list[int]) -> int:
        """Start over and read tokens, in the runtime's chunks."""
        self._session.reset()
        return int(self._session.prefill(tokens).argmax())

    def step(self, token: int) -> int:
        """One token through the same graph."""
        return int(self._session.step(token).argmax())

    def memory_bytes(self) -> int:
        """As the manifest has it."""
        return self._session.state_bytes


class TransformerContender:
    """A causal language model of transformers on the CPU, with the cache that ``generate`` gives it by default.

    A prompt is read in one call, as ``generate`` does, and logits are computed for its last token alone.
    """

    def __init__(self, directory: Path, threads: int, dtype: str) -> None:
        """Load a checkpoint. Raises CheckpointError if transformers cannot."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            line = str(error).strip().split("\n")[0].rstrip(".")
            raise CheckpointError(
                f"The model of {directory} cannot be loaded ({line}).", "Restore the original checkpoint."
            ) from error
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self._model: Any = model.eval()
        self._cache: Any = None

    def reads(self, context: int) -> bool:
        """Up to ``FILLED_ABOVE`` tokens."""
        return context <= FILLED_ABOVE

    def prefill(self, tokens: list[int]) -> int:
        """Start over and read tokens; beyond ``FILLED_ABOVE``, read the last one after a cache of random values."""
        self._cache = None
        if not self.reads(len(tokens)):
            self._fill(tokens[0], len(tokens) - 1)
            return self.step(tokens[-1])
        return self._read(tokens)

    def step(self, token: int) -> int:
        """One token, the cache growing by its keys and values."""
        return self._read([token])

    def memory_bytes(self) -> int:
        """Bytes of all keys and values. Raises UnsupportedModelError if the model keeps anything else."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers())

    def _read(self, tokens: list[int]) -> int:
        import torch

        ids = torch.tensor([tokens])
        with torch.no_grad():
            output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())

    def _fill(self, token: int, length: int) -> None:
        """Read one token, which shapes the cache, and add random keys and values up to ``length``."""
        import torch

        self._read([token])
        for index, layer in enumerate(self._layers()):
            shapes = [(*tensor.shape[:2], length - 1, tensor.shape[3]) for tensor in (layer.keys, layer.values)]
            self._cache.update(*(torch.randn(shape, dtype=layer.keys.dtype) for shape in shapes), index)

    def _layers(self) -> list[Any]:
        layers = list(getattr(self._cache, "layers", ()))
        if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
            raise UnsupportedModelError(
                "The model measured against keeps something else than keys and values in every layer.",
                "Measure against a transformer with softmax attention, such as the package's base.",
            )
        return layers
