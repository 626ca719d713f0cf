"""Causal language models as transformers loads them: a check that reads no weights, then the strict load.

Code in a checkpoint (``auto_map``) is never run.

This module imports transformers, so import it only where a model is loaded with PyTorch.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from liger_export.config import read_config_json
from liger_export.errors import CheckpointError, UnsupportedModelError

__all__ = ["check_causal_lm", "load_causal_lm", "load_tokenizer", "read_vocab_size"]

LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)
"""Exceptions that transformers raises for an incomplete or inconsistent checkpoint."""


def check_causal_lm(directory: Path) -> None:
    """Check that transformers itself has a causal language model of the checkpoint's model type.

    Raises:
        CheckpointError: config.json is missing or damaged.
        UnsupportedModelError: transformers has no such model.
    """
    model_type = read_config_json(directory).get("model_type")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{directory} has model_type {model_type!r}, which is not a causal language model that transformers knows.",
            "Pass a checkpoint that AutoModelForCausalLM loads without remote code, such as the package's base.",
        )


def load_causal_lm(directory: Path, dtype: torch.dtype) -> Any:
    """Load a model from safetensors, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: transformers cannot load it, or tensors are missing.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except LOAD_ERRORS as error:
        raise _unloadable(directory, "model", error) from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(f"{directory} lacks {', '.join(missing[:3])}.", "Restore the original checkpoint.")
    return model.eval()


def load_tokenizer(directory: Path) -> Any:
    """Load a tokenizer.

    Raises:
        CheckpointError: transformers cannot load it, or only with code in the checkpoint.
    """
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except LOAD_ERRORS as error:
        if "trust_remote_code" not in str(error):
            raise _unloadable(directory, "tokenizer", error) from error
        cause = f"The tokenizer of {directory} is code in the checkpoint (auto_map), and such code is never run."
        fix = "Remove auto_map from tokenizer_config.json; the tokenizer is then read from tokenizer.json."
        if not (directory / "tokenizer.json").is_file():
            fix = "Save the model's fast tokenizer there (tokenizer.json), and remove auto_map."
        raise CheckpointError(cause, fix) from error


def read_vocab_size(directory: Path) -> int:
    """Read the size of the model's vocabulary. Raises CheckpointError if transformers cannot load the config."""
    try:
        return int(AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config().vocab_size)
    except LOAD_ERRORS as error:
        raise _unloadable(directory, "config", error) from error


def _unloadable(directory: Path, part: str, error: Exception) -> CheckpointError:
    """Describe what transformers raised for a part of a checkpoint, such as its tokenizer, by its first line."""
    line = str(error).strip().split("\n")[0].rstrip(".")
    return CheckpointError(f"The {part} of {directory} cannot be loaded ({line}).", "Restore the original checkpoint.")
