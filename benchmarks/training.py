"""Finetuning speed and memory: LoRA steps of a Liger model beside those of its softmax base in transformers (sdpa).

Both have the shape of a known model and random weights, float32 under bfloat16 autocast. They train in turns; memory is
that of each alone. Speeds are medians, with the 10th and 90th percentiles. Without --compile the CPU launches kernels
hardly faster than an H200 runs them, so compare on an idle machine.

    python benchmarks/training.py --lengths 1024 8192 --windows 64 256 --json training.json
    python benchmarks/training.py --shape 8b --lengths 2048 --tokens 4096
    python benchmarks/training.py --mixers gla gsa lolcats
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import synchronized_seconds
from peft import LoraConfig, get_peft_model
from random_llama import COMMON, SHAPES
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from liger_export.bench.timing import Spread
from liger_export.config import MIXERS
from liger_export.linearize import LinearizeSettings, liger_config_values
from liger_export.modeling import MODEL_CLASSES

SMOLLM2 = {  # SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {name: {**COMMON, **shape} for name, shape in {"smollm2": SMOLLM2, **SHAPES}.items()}


def base_model(values: dict[str, Any]) -> nn.Module:
    with torch.device("cuda"):
        return LlamaForCausalLM._from_config(LlamaConfig(**values), attn_implementation="sdpa")


def liger_model(values: dict[str, Any], mixer: str, window: int) -> nn.Module:
    liger = liger_config_values(values, LinearizeSettings(mixer=mixer, window_size=window))
    model_class: Any = MODEL_CLASSES[liger["model_type"]]
    with torch.device("cuda"):
        return model_class(model_class.config_class.from_dict(liger))


def compiled(make: Callable[[], Any]) -> nn.Module:
    """Make a model whose decoder layers ``torch.compile`` compiles when they first run."""
    model = make()
    for layer in model.model.layers:
        layer.compile()
    return model


def training_step(model: nn.Module, tokens: torch.Tensor) -> Callable[[], None]:
    """Return a function that takes one optimizer step of a LoRA adapter on q, k and v."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=1e-4)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = adapted(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_gigabytes(step: Callable[[], None]) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def print_profile(step: Callable[[], None]) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    print(f"GPU busy {sum(event.self_device_time_total for event in events) / 1e3:.1f} ms")
    for event in events[:22]:
        print(f"{event.self_device_time_total / 1e3:8.2f} ms {event.count:5d} {event.key[:90]}")


def measure(models: dict[str, Callable[[], nn.Module]], length: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    tokens = torch.randint(MODELS[args.shape]["vocab_size"], (args.tokens // length, length), device="cuda")
    steps, peaks = {}, {}
    for name, make in models.items():
        held = torch.cuda.memory_allocated() / 1e9
        step = steps[name] = training_step(make(), tokens)
        step()  # compiles kernels, and allocates the optimizer's state
        peaks[name] = peak_gigabytes(step) - held
        if args.profile:
            print(name)
            print_profile(step)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            seconds[name] += synchronized_seconds(step, args.repeats, warm_ups=1)
    rows = []
    for name, times in seconds.items():
        speed = Spread.of([args.tokens / each for each in times])
        row = {"model": name, "T": length, "tokens/s": speed.median, "10%": speed.p10, "90%": speed.p90}
        row |= {"of base": speed.median / rows[0]["tokens/s"] if rows else 1.0, "peak GB": peaks[name]}
        rows.append(row)
        print(
            f"T {length:5d} {name:24s} {speed.text(0):>28s} tokens/s  {row['of base']:.2f}x  {peaks[name]:.2f} GB",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=MODELS, default="smollm2", help="SmolLM2-135M, Llama-3.2-1B or Llama-3-8B")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024], help="tokens in a sequence")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens in a batch")
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=["gla"])
    parser.add_argument("--windows", type=int, nargs="+", default=[64])
    parser.add_argument("--rounds", type=int, default=4, help="how often the models take turns")
    parser.add_argument("--repeats", type=int, default=5, help="steps in each turn")
    parser.add_argument("--compile", action="store_true", help="also train each model with compiled layers")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take the most time")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    values = MODELS[args.shape]
    models: dict[str, Callable[[], nn.Module]] = {"softmax base": partial(base_model, values)}
    for mixer in args.mixers:
        models |= {f"{mixer} {window}": partial(liger_model, values, mixer, window) for window in args.windows}
    if args.compile:
        models |= {f"{name}, compiled": partial(compiled, make) for name, make in models.items()}
    results = [row for length in args.lengths for row in measure(models, length, args)]
    if args.json:
        args.json.write_text(
            json.dumps({"gpu": torch.cuda.get_device_name(), "shape": args.shape, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
