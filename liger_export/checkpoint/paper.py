"""Checkpoints of the Liger paper's own implementation (OpenSparseLLMs/Linearization), read as they are.

Their config.json has none of this project's fields: constants of that code stand in for them. Three more things
differ from what the config says, and are told from the tensors: head size and biases, which its Qwen classes set
themselves, and LoLCATs' feature maps, which are one linear layer a head.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_export.checkpoint.reader import TensorInfo
from liger_export.config import FORMAT, MODEL_TYPES, Fields
from liger_export.errors import CheckpointError

__all__ = ["SEED_WINDOW", "adopt_tensors", "translate_config"]

SEED_WINDOW = 65  # flash attention was given 64 to the left: 64 keys and the current one
LOLCATS_WINDOW = 64  # its own mask, which counts the current key
FEATURE_MAP = re.compile(r"(model\.layers\.\d+\.self_attn)\.feature_map_([qk])\.mlp\.linears\.(\d+)\.weight")
MAP_NAMES = {"q": "query_map", "k": "key_map"}


def translate_config(values: dict[str, Any], tensors: dict[str, TensorInfo]) -> dict[str, Any]:
    """The config.json in this project's terms.

    A ``window_size`` in it (a fork of the implementation writes one) counts keys, the current one included.

    Args:
        values: the config.json, without a ``liger_format``.
        tensors: the checkpoint's tensors, as ``adopt_tensors`` returns them.

    Raises:
        CheckpointError: a field or tensor that decides what the model computes is missing.
    """
    mixer = MODEL_TYPES[values["model_type"]].mixer
    first = "model.layers.0.self_attn"
    if f"{first}.q_proj.weight" not in tensors:
        raise CheckpointError(f"The checkpoint lacks {first}.q_proj.weight.", "Restore the original checkpoint.")
    heads = Fields(values).integer("num_attention_heads")
    translated = {
        **values,
        "liger_format": FORMAT,
        "window_size": values.get("window_size") or (LOLCATS_WINDOW if mixer == "lolcats" else SEED_WINDOW),
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
            raise CheckpointError("config.json has no pool_size.", "Add it: the slots of each key/value head.")
        translated["num_slots"] = values["pool_size"]
    if mixer == "lolcats":
        if f"{first}.query_map" not in tensors:
            raise CheckpointError(
                f"The checkpoint lacks {first}.feature_map_q, a LoLCATs feature map.",
                "Pass the checkpoint that LoLCATs' first stage saved, or linearize the base with --mixer lolcats.",
            )
        translated["feature_dim"] = tensors[f"{first}.query_map"].shape[2]
    return translated


def adopt_tensors(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The same tensors under this project's names: a layer's feature maps stacked, window factors flat."""
    adopted: dict[str, TensorInfo] = {}
    maps: dict[str, dict[int, TensorInfo]] = {}
    for name, info in tensors.items():
        if found := FEATURE_MAP.fullmatch(name):
            layer, side, head = found.groups()
            maps.setdefault(f"{layer}.{MAP_NAMES[side]}", {})[int(head)] = info
        elif name.endswith(".window_factors"):
            adopted[name] = _FlatTensor(info.file, info.stored_name, (torch.Size(info.shape).numel(),), info.dtype)
        else:
            adopted[name] = info
    return adopted | {name: _stack(name, heads) for name, heads in maps.items()}


class _FlatTensor(TensorInfo):
    """A tensor of any shape, read as one row of numbers."""

    def read(self, start: int, stop: int) -> Tensor:
        with_units = TensorInfo.read(self, 0, 1)  # [1, H, 1, 1]
        return with_units.flatten()[start:stop]


@dataclass(frozen=True, slots=True)
class _StackedMaps(TensorInfo):
    """H linear layers [F / 2, D] of as many heads, read as one tensor [H, D, F / 2]."""

    heads: tuple[TensorInfo, ...]

    def read(self, start: int, stop: int) -> Tensor:
        return torch.stack([head.read(0, head.shape[0]).T for head in self.heads[start:stop]])


def _stack(name: str, heads: dict[int, TensorInfo]) -> TensorInfo:
    first = heads.get(0)
    if first is None or sorted(heads) != list(range(len(heads))) or any(h.shape != first.shape for h in heads.values()):
        raise CheckpointError(
            f"The heads of {name} are not complete or not of one shape.", "Restore the original checkpoint."
        )
    features, head_dim = first.shape
    in_order = tuple(heads[head] for head in range(len(heads)))
    return _StackedMaps(first.file, name, (len(heads), head_dim, features), first.dtype, in_order)
