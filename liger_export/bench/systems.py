"""The measured systems: a package in ONNX Runtime, and a transformer with its KV cache in PyTorch.

torch and transformers are imported only when a transformer is loaded, so a package's process contains neither.
"""

import warnings
from pathlib import Path
from typing import Any, Protocol

from liger_export.errors import UnsupportedModelError
from liger_export.runtime import load
from liger_export.runtime.buffers import CPU

__all__ = ["FILLED_ABOVE", "PackageSystem", "System", "TransformerSystem"]

FILLED_ABOVE = 4096  # a transformer's prefill is quadratic: hours at 32k tokens and a billion parameters


class System(Protocol):
    """A model that reads a context and continues it greedily, one token at a time.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
    """

    vocab_size: int

    def reads(self, context: int) -> bool:
        """Return True if ``prefill`` reads a context of this length, False if it fills a cache with random values."""

    def prefill(self, tokens: list[int]) -> int:
        """Start over, read tokens and return the argmax of the next token."""

    def step(self, token: int) -> int:
        """Read one token and return the argmax of the next."""

    def memory_bytes(self) -> int:
        """Return the bytes of all tensors that are carried to the next token."""


class PackageSystem:
    """A package. Its memory is one set of state tensors. A session holds two sets, and neither grows."""

    def __init__(self, directory: Path, threads: int) -> None:
        """Open a package whose files have already been checked. Raises the same errors as ``load``."""
        self._session = load(directory, device=CPU, threads=threads)
        self.vocab_size = self._session.manifest.model_config.vocab_size

    def reads(self, context: int) -> bool:
        """Return True: a package reads every context."""
        return True

    def prefill(self, tokens: list[int]) -> int:
        """Start over and read tokens, in the runtime's chunks."""
        self._session.reset()
        return int(self._session.prefill(tokens).argmax())

    def step(self, token: int) -> int:
        """Read one token with the same graph."""
        return int(self._session.step(token).argmax())

    def memory_bytes(self) -> int:
        """Return the size of the state in the manifest."""
        return self._session.state_bytes


class TransformerSystem:
    """A causal language model in transformers on the CPU, with the cache that ``generate`` uses by default.

    As in ``generate``, a prompt is read in one call, and logits are computed only for its last token.
    """

    def __init__(self, directory: Path, threads: int, dtype: str) -> None:
        """Load a checkpoint. Raises CheckpointError if transformers cannot load it."""
        import torch
        from transformers.utils import logging

        from liger_export.checkpoint.causal_lm import load_causal_lm

        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._model: Any = load_causal_lm(directory, getattr(torch, dtype))
        self._cache: Any = None
        self.vocab_size = int(self._model.config.get_text_config().vocab_size)

    def reads(self, context: int) -> bool:
        """Return True up to ``FILLED_ABOVE`` tokens."""
        return context <= FILLED_ABOVE

    def prefill(self, tokens: list[int]) -> int:
        """Start over and read tokens. Above ``FILLED_ABOVE``, fill the cache at random and read only the last token."""
        self._cache = None
        if not self.reads(len(tokens)):
            self._fill(tokens[0], len(tokens) - 1)
            return self.step(tokens[-1])
        return self._read(tokens)

    def step(self, token: int) -> int:
        """Read one token; its keys and values are added to the cache."""
        return self._read([token])

    def memory_bytes(self) -> int:
        """Return the bytes of all keys and values. Raises UnsupportedModelError if the model keeps anything else."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers())

    def _read(self, tokens: list[int]) -> int:
        import torch

        ids = torch.tensor([tokens])
        with torch.no_grad():
            output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())

    def _fill(self, token: int, length: int) -> None:
        """Read one token to allocate the cache, then append random keys and values up to ``length``."""
        import torch

        self._read([token])
        for index, layer in enumerate(self._layers()):
            shapes = [(*tensor.shape[:2], length - 1, tensor.shape[3]) for tensor in (layer.keys, layer.values)]
            self._cache.update(*(torch.randn(shape, dtype=layer.keys.dtype) for shape in shapes), index)

    def _layers(self) -> list[Any]:
        layers = list(getattr(self._cache, "layers", ()))
        if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
            raise UnsupportedModelError(
                "The model to compare with has layers whose memory is not keys and values.",
                "Compare with a transformer that uses softmax attention, such as the package's base.",
            )
        return layers
