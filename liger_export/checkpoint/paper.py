"""Checkpoints of the Liger paper's implementation (OpenSparseLLMs/Linearization), read without conversion.

Their config.json lacks this project's fields, so constants of the paper implementation replace them. Three properties
are not in the config and are read from the tensors: the head size and the biases, which the implementation's Qwen
classes set themselves, and LoLCATs' feature maps, which are one linear layer per head.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_export.checkpoint.reader import TensorInfo
from liger_export.config import FORMAT, MODEL_TYPES, Fields
from liger_export.errors import CheckpointError

__all__ = ["PAPER_WINDOW", "translate_config", "translate_tensors"]

PAPER_WINDOW = 65  # flash attention got a left window of 64: 64 keys plus the current key
LOLCATS_WINDOW = 64  # LoLCATs has its own mask, which includes the current key
FEATURE_MAP = re.compile(r"(model\.layers\.\d+\.self_attn)\.feature_map_([qk])\.mlp\.linears\.(\d+)\.weight")
MAP_NAMES = {"q": "query_map", "k": "key_map"}


def translate_config(values: dict[str, Any], tensors: dict[str, TensorInfo]) -> dict[str, Any]:
    """Translate a config.json to this project's fields.

    A ``window_size`` field, which a fork of the paper implementation writes, includes the current key.

    Args:
        values: the values of a config.json without ``liger_format``.
        tensors: the checkpoint's tensors, as ``translate_tensors`` returns them.

    Raises:
        CheckpointError: a required field or tensor is missing.
    """
    mixer = MODEL_TYPES[values["model_type"]].mixer
    first = "model.layers.0.self_attn"
    if f"{first}.q_proj.weight" not in tensors:
        raise CheckpointError(f"The checkpoint lacks {first}.q_proj.weight.", "Restore the original checkpoint.")
    heads = Fields(values).integer("num_attention_heads")
    translated = {
        **values,
        "liger_format": FORMAT,
        "window_size": values.get("window_size") or (LOLCATS_WINDOW if mixer == "lolcats" else PAPER_WINDOW),
        "gate_normalizer": 16.0,
        "recurrent_weight": 0.5,
        "attention_bias": False,
        "qkv_bias": f"{first}.q_proj.bias" in tensors,
        "qk_norm": values.get("qk_norm", f"{first}.q_norm.weight" in tensors),
        "head_dim": tensors[f"{first}.q_proj.weight"].shape[0] // max(heads, 1),
        "learned_window_factors": f"{first}.window_factors" in tensors,
    }
    if mixer == "gsa":
        if values.get("pool_size") is None:
            raise CheckpointError(
                "config.json has no pool_size.", "Add it: it is the number of slots per key/value head."
            )
        translated["num_slots"] = values["pool_size"]
    if mixer == "lolcats":
        if f"{first}.query_map" not in tensors:
            raise CheckpointError(
                f"The checkpoint lacks {first}.feature_map_q, a LoLCATs feature map.",
                "Pass the checkpoint of LoLCATs' first stage, or linearize the base model with --mixer lolcats.",
            )
        translated["feature_dim"] = tensors[f"{first}.query_map"].shape[2]
    return translated


def translate_tensors(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Translate tensors to this project's names and shapes: stacked feature maps and flat window factors."""
    translated: dict[str, TensorInfo] = {}
    maps: dict[str, dict[int, TensorInfo]] = {}
    for name, info in tensors.items():
        if found := FEATURE_MAP.fullmatch(name):
            layer, side, head = found.groups()
            maps.setdefault(f"{layer}.{MAP_NAMES[side]}", {})[int(head)] = info
        elif name.endswith(".window_factors"):
            translated[name] = _FlatTensor(info.file, info.stored_name, (torch.Size(info.shape).numel(),), info.dtype)
        else:
            translated[name] = info
    return translated | {name: _stack(name, heads) for name, heads in maps.items()}


class _FlatTensor(TensorInfo):
    """A tensor of any shape with one leading row, read as a vector."""

    def read(self, start: int, stop: int) -> Tensor:
        stored = TensorInfo.read(self, 0, 1)  # [1, H, 1, 1]
        return stored.flatten()[start:stop]


@dataclass(frozen=True, slots=True)
class _StackedMaps(TensorInfo):
    """Linear layers [F / 2, D] of H heads, read as one tensor [H, D, F / 2]."""

    heads: tuple[TensorInfo, ...]

    def read(self, start: int, stop: int) -> Tensor:
        return torch.stack([head.read(0, head.shape[0]).T for head in self.heads[start:stop]])


def _stack(name: str, heads: dict[int, TensorInfo]) -> TensorInfo:
    first = heads.get(0)
    if first is None or sorted(heads) != list(range(len(heads))) or any(h.shape != first.shape for h in heads.values()):
        raise CheckpointError(
            f"The heads of {name} are incomplete or differ in shape.", "Restore the original checkpoint."
        )
    features, head_dim = first.shape
    in_order = tuple(heads[head] for head in range(len(heads)))
    return _StackedMaps(first.file, name, (len(heads), head_dim, features), first.dtype, in_order)
