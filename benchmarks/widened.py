"""Give a Liger checkpoint the layer shapes of a larger model, by zeros: its text at the larger model's cost.

A model with random weights costs the time of a real one, but writes no text. This writes the text of a small model:

    python benchmarks/widened.py chat/liger OUT --adapter examples/smollm2-135m/adapter-int4 --shape 1b
    liger-export convert OUT -o package --lowering fused --precision int4 --lm-head int8

Added rows and columns of the weights are zeros, so the added hidden states, heads and inner activations are zeros too.
An RMSNorm divides by more columns, which its weight and epsilon make up for. The number of layers and the vocabulary
stay. Rounding differs, so a text can change where two tokens are almost equally likely.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from random_llama import SHAPES
from safetensors.torch import save_file
from torch import Tensor

from liger_export.checkpoint import Adapter, MergedCheckpoint, expected_tensors, open_liger
from liger_export.config import LigerConfig
from liger_export.files import copy_files

WIDENED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
CARRIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def places(name: str, small: LigerConfig, large: LigerConfig) -> Tensor:
    """Return where in the large model the rows of a small tensor are, or its columns for a name of ``columns_of``."""
    if name == "q_proj":  # a query head stays with its key/value head
        per_group = small.num_attention_heads // small.num_key_value_heads
        rows = torch.arange(large.num_attention_heads * large.head_dim)
        rows = rows.view(large.num_key_value_heads, -1, large.head_dim)
        return rows[: small.num_key_value_heads, :per_group].flatten()
    sizes = {
        "k_proj": small.num_key_value_heads * small.head_dim,
        "v_proj": small.num_key_value_heads * small.head_dim,
        "gate_proj": small.intermediate_size,
        "up_proj": small.intermediate_size,
        "embed_tokens": small.vocab_size,
        "lm_head": small.vocab_size,
    }
    return torch.arange(sizes.get(name, small.hidden_size))


def columns_of(name: str) -> str:
    """Return the projection whose rows correspond to the columns of a projection."""
    return {"o_proj": "q_proj", "down_proj": "up_proj"}.get(name, "hidden")


def widened(name: str, tensor: Tensor, shape: tuple[int, ...], small: LigerConfig, large: LigerConfig) -> Tensor:
    module = name.split(".")[-2]
    wide = torch.zeros(shape)
    rows = places(module, small, large)
    if tensor.ndim == 1:
        factor = (small.hidden_size / large.hidden_size) ** 0.5 if "norm" in module else 1.0
        wide[rows] = tensor * factor
    else:
        wide[rows[:, None], places(columns_of(module), small, large)] = tensor
    return wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="Liger checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to create")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="adapter to merge")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="Llama-3.2-1B or Llama-3-8B")
    args = parser.parse_args()

    opened = open_liger(args.checkpoint)
    small, shape = opened.config, SHAPES[args.shape]
    if small.qk_norm or small.head_dim != shape["head_dim"]:
        raise SystemExit(f"The model needs heads of {shape['head_dim']}, without norms of queries and keys.")
    values: dict[str, Any] = opened.values | {name: shape[name] for name in WIDENED}
    values["rms_norm_eps"] = small.rms_norm_eps * small.hidden_size / shape["hidden_size"]
    large = LigerConfig.from_dict(values)
    merged = MergedCheckpoint(opened.weights, tuple(Adapter.open(adapter) for adapter in args.adapter))
    merged.check()
    args.out.mkdir(parents=True)
    (args.out / "config.json").write_text(json.dumps(values, indent=2))
    copy_files(CARRIED, args.checkpoint, args.out)
    small_shapes, shards = expected_tensors(small), {}
    for index, (name, wide_shape) in enumerate(expected_tensors(large).items()):
        tensor = merged.rows(name, 0, small_shapes[name][0])
        shards[name] = f"model-{index:05d}.safetensors"
        save_file({name: widened(name, tensor, wide_shape, small, large)}, args.out / shards[name])
    (args.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


if __name__ == "__main__":
    main()
