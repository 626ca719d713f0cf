"""Decoding speed of a softmax transformer in Hugging Face transformers on a GPU, to compare with a package's.

Random weights of Llama-3-8B's shape in bfloat16, static cache, SDPA, torch.compile in mode reduce-overhead. The cache
is only marked as filled up to each context: its content does not change the time of a step.

    python benchmarks/transformers_decode.py --contexts 1024 32768 131072 --json transformers.json
"""

import argparse
import json
from pathlib import Path

import torch
from common import synchronized_seconds, time_report
from random_llama import COMMON, SHAPES
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

ROOM = 512  # cache positions after the context, for the steps


def random_model(shape: str, device: str) -> LlamaForCausalLM:
    config = LlamaConfig(**{**COMMON, **SHAPES[shape]}, attn_implementation="sdpa", dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its frequencies are not parameters
    return model


@torch.inference_mode()
def decode(model: LlamaForCausalLM, context: int, repeats: int) -> dict[str, float]:
    """Measure one step at a context in milliseconds, with the argmax on the device."""
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
    return time_report(synchronized_seconds(lambda: compiled(token, positions), repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 32768, 131072], help="tokens in the cache")
    parser.add_argument("--repeats", type=int, default=100, help="steps to time at each context (default: %(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="file for the results")
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
