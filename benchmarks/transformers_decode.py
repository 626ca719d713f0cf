"""Decode steps of the softmax transformer in Hugging Face transformers, for a package's speed beside it.

Random weights of Llama-3-8B's shape in bfloat16, static cache, torch.compile in mode reduce-overhead, SDPA. The cache
counts as full to each context: what it holds does not change the time of a step.

    python benchmarks/transformers_decode.py --contexts 1024 32768 131072 --json transformers.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from on_cuda import timed
from random_llama import COMMON, SHAPES
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

ROOM = 512  # positions behind the context that steps are written to


def random_model(shape: str, device: str) -> LlamaForCausalLM:
    config = LlamaConfig(**{**COMMON, **SHAPES[shape]}, attn_implementation="sdpa", dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its frequencies are no parameters
    return model


@torch.inference_mode()
def decode(model: LlamaForCausalLM, context: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one step at a context, its greedy token chosen on the device."""
    torch._dynamo.reset()
    cache = StaticCache(config=model.config, max_cache_len=context + ROOM)
    token = torch.ones(1, 1, dtype=torch.int64, device=model.device)
    model(token, past_key_values=cache)  # allocates the cache
    for layer in cache.layers:
        layer.cumulative_length.fill_(context)

    def step(token: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return model(token, position_ids=positions, past_key_values=cache).logits.argmax(-1)

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True)
    positions = torch.full((1, 1), context, device=model.device)
    milliseconds = np.array(timed(lambda: compiled(token, positions), repeats)) * 1e3
    low, median, high = np.percentile(milliseconds, (10, 50, 90))
    return {"ms": median, "10%": low, "90%": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 32768, 131072])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = random_model(args.shape, args.device)
    report = {}
    for context in args.contexts:
        report[context] = decode(model, context, args.repeats)
        print(context, json.dumps(report[context]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
