"""Speed of the kernels behind a training step's attention: each kernel, and other tilings of the slowest.

Shapes: a layer of SmolLM2-135M with 16 x 1,024 and 2 x 8,192 tokens, and one of Llama-3-8B with 4,096, in bfloat16 with
window 64. Times are medians of a kernel in PyTorch's profiler, in microseconds, and of whole calls in CUDA graphs.

    python benchmarks/gradients.py
    python benchmarks/gradients.py --shapes smollm2 --tilings
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from common import graph_microseconds
from triton.runtime.errors import OutOfResources

from liger_export.kernels import gradients, runner
from liger_export.kernels.gradients import projection_gradients
from liger_export.kernels.launch import chunkwise, shape_of
from liger_export.kernels.plans import backward_plans

W = 64
SHAPES = {  # sequences, tokens, key/value heads, query heads per key/value head, head size
    "smollm2": (16, 1024, 3, 3, 64),
    "smollm2-long": (2, 8192, 3, 3, 64),
    "8b": (1, 4096, 8, 4, 128),
}
OPTIONS = (16.0, 0.5)  # gate normalizer, recurrent weight


def layer(batch: int, length: int, kv_heads: int, queries: int, head_dim: int) -> tuple[Any, ...]:
    """Return random projections, positions, the empty state, and a gradient of the output."""
    sizes = (kv_heads * queries, kv_heads, kv_heads, kv_heads * queries)
    *projections, upstream = (
        torch.randn(batch, length, heads * head_dim, device="cuda", dtype=torch.bfloat16) for heads in sizes
    )
    angles = torch.rand(batch, length, head_dim // 2, device="cuda") * 6
    position_ids = torch.arange(length, device="cuda").repeat(batch, 1)
    window = torch.zeros(batch, kv_heads, W, head_dim, device="cuda", dtype=torch.bfloat16)
    state = (torch.zeros(batch, kv_heads, head_dim, head_dim, device="cuda"), window, window)
    return tuple(projections), (angles.cos(), angles.sin(), position_ids), state, upstream


def print_kernels(call: Callable[[], object], repeats: int = 10) -> None:
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    for event in sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)[:8]:
        print(f"  {event.self_device_time_total / event.count:8.1f} us  {event.key[:60]}")


def print_tilings(mixer: str, tensors: tuple[Any, ...]) -> None:
    """Time whole gradients with other tilings of ``gradient_kernel``."""
    *arguments, upstream = tensors
    plans = backward_plans(shape_of(mixer, arguments[0], arguments[2]))
    usual = plans["gradient_kernel"]
    for heads, warps, columns in product((1, 2, 4), (4, 8), (16, 32, 64)):
        other = replace(
            usual,
            constants={**usual.constants, "HEADS": heads, "BLOCK_V": columns},
            options={**usual.options, "num_warps": warps},
        )
        runner._runners.cache_clear()
        with patch.object(gradients, "backward_plans", lambda _, other=other: {**plans, "gradient_kernel": other}):
            try:
                took = graph_microseconds([partial(projection_gradients, mixer, *arguments, upstream, *OPTIONS)])
            except OutOfResources as error:
                print(f"  heads {heads}, warps {warps}, columns {columns}: {error}")
                continue
        print(f"  heads {heads}, warps {warps}, columns {columns}: {took:.0f} us", flush=True)
    runner._runners.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tilings", action="store_true", help="time other tilings of gradient_kernel too")
    args = parser.parse_args()
    for name in args.shapes:
        *arguments, upstream = tensors = layer(*SHAPES[name])
        forward = partial(chunkwise, "gla", *arguments, *OPTIONS)
        backward = partial(projection_gradients, "gla", *arguments, upstream, *OPTIONS)
        for what, call in (("forward", forward), ("gradients", backward)):
            print(f"{name} {what}: {graph_microseconds([call]):.0f} us", flush=True)
            print_kernels(call)
        if args.tilings:
            print_tilings("gla", tensors)


if __name__ == "__main__":
    main()
