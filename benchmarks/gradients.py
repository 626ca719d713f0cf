"""Speed of the kernels behind a training step's attention: each kernel, and other tilings.

Shapes: a layer of SmolLM2-135M with 16 x 1,024 and 2 x 8,192 tokens, and one of Llama-3-8B with 4,096, in bfloat16 with
window 64. Times are medians of a kernel in PyTorch's profiler, in microseconds, and of whole calls in CUDA graphs.

    python benchmarks/gradients.py
    python benchmarks/gradients.py --shapes smollm2 --tilings pair_gradients_kernel
    python benchmarks/gradients.py --mixer gsa
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
from liger_export.kernels.plans import CHUNK, Axis
from liger_export.kernels.shapes import TRAINED_MIXERS
from liger_export.kernels.training_plans import backward_plans
from liger_export.ops import SIGNATURES

W = 64
SHAPES = {  # sequences, tokens, key/value heads, query heads per key/value head, head size
    "smollm2": (16, 1024, 3, 3, 64),
    "smollm2-long": (2, 8192, 3, 3, 64),
    "8b": (1, 4096, 8, 4, 128),
}
OPTIONS = (16.0, 0.5)  # gate normalizer, recurrent weight


def _state_tiles(head_dim: int, rows: int, columns: int) -> Axis:
    return Axis(-(-head_dim // rows) * -(-head_dim // columns), "length", CHUNK)


def _row_tiles(head_dim: int, rows: int, columns: int) -> Axis:
    return Axis(-(-head_dim // rows), "length", CHUNK)


def _column_tiles(head_dim: int, rows: int, columns: int) -> Axis:
    return Axis(-(-head_dim // columns), "length", CHUNK)


TILED = {  # kernels and the first axis of their grid, by head size and the rows and columns of a tile
    "pair_gradients_kernel": _row_tiles,
    "pair_gradients_kernel_added": _row_tiles,
    "slot_scores_kernel": _row_tiles,
    "value_gradients_kernel": _column_tiles,
    "slot_query_gradients_kernel": _column_tiles,
    "chunk_states_kernel": _state_tiles,
    "chunk_state_gradients_kernel": _state_tiles,
}


def layer(mixer: str, batch: int, length: int, kv_heads: int, queries: int, head_dim: int) -> tuple[Any, ...]:
    """Return random projections, positions, the empty state, and a gradient of the output."""
    sizes = (kv_heads * queries, kv_heads, kv_heads, kv_heads * queries)
    *projections, upstream = (
        torch.randn(batch, length, heads * head_dim, device="cuda", dtype=torch.bfloat16) for heads in sizes
    )
    angles = torch.rand(batch, length, head_dim // 2, device="cuda") * 6
    position_ids = torch.arange(length, device="cuda").repeat(batch, 1)
    window = torch.zeros(batch, kv_heads, W, head_dim, device="cuda", dtype=torch.bfloat16)
    memory = torch.zeros(batch, kv_heads, head_dim, head_dim, device="cuda")
    state = (*([memory] * len(SIGNATURES[mixer].recurrent_states)), window, window)
    return tuple(projections), (angles.cos(), angles.sin(), position_ids), state, upstream


def print_kernels(call: Callable[[], object], repeats: int = 10) -> None:
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    for event in sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)[:18]:
        print(f"  {event.self_device_time_total / event.count:8.1f} us  {event.key[:60]}")


def print_tilings(mixer: str, tensors: tuple[Any, ...], name: str) -> None:
    """Time whole gradients with other tilings of a kernel."""
    *arguments, upstream = tensors
    head_dim = arguments[2][0].shape[-1]
    chunks = -(-arguments[0][0].shape[1] // CHUNK)
    plans = backward_plans(shape_of(mixer, arguments[0], arguments[2]), chunks)
    usual = plans[name]
    sizes = [size for size in (16, 32, 64, 128) if size <= head_dim]
    for warps, rows, columns, registers in product((4,), sizes[:3], sizes[1:], (255, 168, 128)):
        other = replace(
            usual,
            constants={**usual.constants, "BLOCK_K": rows, "BLOCK_V": columns},
            options={**usual.options, "num_warps": warps, "maxnreg": registers},
            grid=(TILED[name](head_dim, rows, columns), *usual.grid[1:]),
        )
        runner._runners.cache_clear()
        with patch.object(gradients, "backward_plans", lambda *_, other=other: {**plans, name: other}):
            try:
                call = partial(projection_gradients, mixer, *arguments, upstream, *OPTIONS)
                took = f"{graph_microseconds([call]):.0f} us"
            except OutOfResources as error:
                took = str(error)
        print(f"  {name}, warps {warps}, rows {rows}, columns {columns}, registers {registers}: {took}", flush=True)
    runner._runners.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixer", choices=TRAINED_MIXERS, default="gla")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tilings", choices=TILED, help="time other tilings of a kernel too")
    args = parser.parse_args()
    for name in args.shapes:
        *arguments, upstream = tensors = layer(args.mixer, *SHAPES[name])
        forward = partial(chunkwise, args.mixer, *arguments, *OPTIONS)
        backward = partial(projection_gradients, args.mixer, *arguments, upstream, *OPTIONS)
        for what, call in (("forward", forward), ("gradients", backward)):
            print(f"{name} {what}: {graph_microseconds([call]):.0f} us", flush=True)
            print_kernels(call)
        if args.tilings:
            print_tilings(args.mixer, tensors, args.tilings)


if __name__ == "__main__":
    main()
