"""Write a Llama checkpoint with a known model's shape and random bfloat16 weights, one tensor at a time.

python benchmarks/random_llama.py 1b OUT
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from liger_export.checkpoint import expected_tensors
from liger_export.config import LigerConfig
from liger_export.linearize import LinearizeSettings, liger_config_values

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES = {
    "1b": {  # Llama-3.2-1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8b": {  # Llama-3-8B
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_parameters": LLAMA3_ROPE,
}
TOKENIZER = Path(__file__).parents[1] / "examples" / "pycode-7m" / "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, help="Llama-3.2-1B or Llama-3-8B")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to create")
    args = parser.parse_args()

    values = {**COMMON, **SHAPES[args.shape]}
    args.out.mkdir(parents=True)
    (args.out / "config.json").write_text(json.dumps(values, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # any tokenizer works: the weights are random
        shutil.copyfile(TOKENIZER / name, args.out / name)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, str] = {}
    config = LigerConfig.from_dict(liger_config_values(values, LinearizeSettings()))
    for index, (name, shape) in enumerate(expected_tensors(config).items()):
        tensor = torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
        if name.endswith("norm.weight"):
            tensor.fill_(1)
        shards[name] = f"model-{index:05d}.safetensors"
        save_file({name: tensor}, args.out / shards[name])
    (args.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


if __name__ == "__main__":
    main()
