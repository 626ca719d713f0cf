"""Causal language models as transformers loads them: a check that reads no weights, then the strict load.

This module imports transformers, so import it only where a model is loaded with PyTorch.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from liger_export.config import read_config_json
from liger_export.errors import CheckpointError, UnsupportedModelError

__all__ = ["LOAD_ERRORS", "check_causal_lm", "load_causal_lm", "unloadable"]

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
        raise unloadable(directory, "model", error) from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(f"{directory} lacks {', '.join(missing[:3])}.", "Restore the original checkpoint.")
    return model.eval()


def unloadable(directory: Path, part: str, error: Exception) -> CheckpointError:
    """Describe what transformers raised for a part of a checkpoint, such as its tokenizer, by its first line."""
    line = str(error).strip().split("\n")[0].rstrip(".")
    return CheckpointError(f"The {part} of {directory} cannot be loaded ({line}).", "Restore the original checkpoint.")
