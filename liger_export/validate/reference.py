"""The reference: the full-sequence forward of the PyTorch model in float32, with adapters merged by PEFT."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from liger_export.config import LigerConfig
from liger_export.errors import InputError
from liger_export.modeling import LigerCache, register
from liger_export.runtime import SavedState
from liger_export.runtime.dtypes import narrowed, widened
from liger_export.state import StateTensor, by_layer

__all__ = ["TorchReference"]

LOGIT_BLOCK = 512


class TorchReference:
    """A Liger checkpoint in PyTorch. It shares no code with the package's graph, the runtime or the LoRA merging."""

    def __init__(self, checkpoint: Path, adapters: tuple[Path, ...]) -> None:
        register()
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=False)
        for adapter in adapters:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        self._model = model.eval()

    def require_config(self, config: LigerConfig) -> None:
        """Check that a package has this model's config. Raises InputError."""
        if self._model.model.liger != config:
            raise InputError(
                "The package was not converted from this checkpoint: their configurations differ.",
                "Pass the checkpoint that the manifest of the package names as its source.",
            )

    @torch.no_grad()
    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits, float32 [T, vocab_size], after each token of a whole sequence, int64 [T]."""
        decoded = self._model.model(torch.from_numpy(tokens[None]), use_cache=False).last_hidden_state[0]
        return np.concatenate([self._model.lm_head(rows).numpy() for rows in decoded.split(LOGIT_BLOCK)])

    @torch.no_grad()
    def continued(
        self, state: SavedState, table: tuple[StateTensor, ...], tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Logits, float32 [T, vocab_size], after each token, int64 [T], continuing from a state saved by a package."""
        wide = [torch.from_numpy(widened(state.tensors[entry.past_name])) for entry in table]  # float32, like the model
        cache = LigerCache(by_layer(table, wide), torch.tensor([state.position]), state.position)
        output = self._model(torch.from_numpy(tokens[None]), past_key_values=cache, use_cache=False)
        logits: npt.NDArray[np.float32] = output.logits[0].numpy()
        return logits

    @torch.no_grad()
    def state_after(self, tokens: npt.NDArray[np.int64], table: tuple[StateTensor, ...]) -> SavedState:
        """State after reading a sequence, int64 [T], under the names of the state table."""
        cache = self._model(torch.from_numpy(tokens[None]), use_cache=True, logits_to_keep=1).past_key_values
        tensors = [tensor.numpy() for layer in cache.layers for tensor in layer]
        named = zip(table, tensors, strict=True)
        return SavedState(len(tokens), {entry.past_name: narrowed(tensor, entry.dtype) for entry, tensor in named})
