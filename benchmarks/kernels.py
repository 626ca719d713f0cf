"""Accuracy and speed of the kernels on one GPU, next to flash-linear-attention, FlexAttention and a plain copy.

Measures one layer of Llama-3-8B's shape: 32 query heads, 8 key/value heads, head size 128, window 64, bfloat16. Times
are those of replayed CUDA graphs. Steps rotate over enough states that none stays in the cache. flash-linear-attention
autotunes over many configurations before its first result, which takes minutes.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --parts chunk peers
    python benchmarks/kernels.py --parts training
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import copy_bandwidth, graph_microseconds

from liger_export.kernels.gradients import projection_gradients
from liger_export.kernels.launch import chunkwise, step, step_in_place
from liger_export.ops import NAIVE_ATTENTIONS
from liger_export.parity.compare import relative_l2

H, G, D, W, T = 32, 8, 128, 64, 4096
OPTIONS = {"gate_normalizer": 16.0, "recurrent_weight": 0.5}
CUDA = "cuda"


def layer(batch: int, length: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any, Any]:
    """Return random projections in packed rows, positions and a full state."""
    packed = torch.randn(batch, length, (H + 2 * G) * D, device=CUDA).to(dtype)
    angles = torch.rand(batch, length, D // 2, device=CUDA) * 6
    position_ids = (1000 + torch.arange(length, device=CUDA)).expand(batch, -1).contiguous()
    window = [torch.randn(batch, G, W, D, device=CUDA).to(dtype) for _ in range(2)]
    state = (torch.randn(batch, G, D, D, device=CUDA), *window)
    return packed.split((H * D, G * D, G * D), dim=-1), (angles.cos(), angles.sin(), position_ids), state


def errors() -> None:
    """Print the relative L2 error of output and state against float64, from an empty state."""
    length = 200
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        projections, (cos, sin, position_ids), state = layer(1, length, dtype)
        position_ids, angles = position_ids - 1000, torch.atan2(sin.double(), cos.double())
        state = tuple(torch.zeros_like(tensor) for tensor in state)
        heads = [part.double().unflatten(-1, (-1, D)).cpu() for part in projections]
        expected, memory, *_ = NAIVE_ATTENTIONS["gla"](*heads, angles.cpu(), W, **OPTIONS)
        whole = chunkwise("gla", projections, (cos, sin, position_ids), state, **OPTIONS)
        outputs, after_steps = [], state
        for t in range(length):
            here = slice(t, t + 1)
            token = tuple(part[:, here] for part in projections)
            at = (cos[:, here], sin[:, here], position_ids[:, here])
            output, *after_steps = step("gla", token, at, tuple(after_steps), **OPTIONS)
            outputs.append(output)
        for name, output, after in (("chunk", whole[0], whole[1]), ("step", torch.cat(outputs, 1), after_steps[0])):
            found = [(output.cpu().double(), expected.flatten(2)), (after.cpu().double(), memory)]
            relative = [relative_l2(a.numpy(), b.numpy()) for a, b in found]
            print(f"{name} {dtype}: output {relative[0]:.1e}, state {relative[1]:.1e}", flush=True)


def steps(batch: int) -> None:
    """Time one token of a batch, with the state updated in place and with a new state."""
    layers = [layer(batch, 1) for _ in range(max(12, 128 // batch))]
    for name, kernel in (("in place, ring buffer", step_in_place), ("new state, oldest key first", step)):
        time = graph_microseconds([partial(kernel, "gla", *each, **OPTIONS) for each in layers])
        nbytes = sum(tensor.nbytes for tensor in layers[0][2]) + layers[0][2][0].nbytes
        print(f"step, batch {batch}, {name}: {time:.2f} us; {nbytes / time / 1e6:.2f} TB/s of state", flush=True)


def prefill() -> None:
    """Time many tokens of one sequence."""
    for dtype in (torch.bfloat16, torch.float32):
        time = graph_microseconds([partial(chunkwise, "gla", *layer(1, T, dtype), **OPTIONS)])
        print(f"chunk, T {T}, {dtype}: {time:.0f} us", flush=True)


def training() -> None:
    """Time many tokens and their gradients. Ours include the window; the peer is timed with and without one."""
    arguments = layer(1, T)
    upstream = torch.randn(1, T, H * D, device=CUDA, dtype=torch.bfloat16)

    def ours() -> None:
        chunkwise("gla", *arguments, **OPTIONS)
        projection_gradients("gla", *arguments, upstream, **OPTIONS)

    print(f"chunk and gradients, T {T}: {graph_microseconds([ours]):.0f} us", flush=True)
    from fla.ops.gla import chunk_gla

    heads = [torch.randn(1, T, H, D, device=CUDA, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def theirs() -> None:
        query, key, value = heads
        gates = F.logsigmoid(key.float()) / 16
        output, _ = chunk_gla(query.softmax(-1), key.softmax(-1), value, gates, scale=1.0)
        torch.autograd.grad(output, heads, upstream.view_as(output))

    window, inputs = windowed_flex(requires_grad=True)
    into_window = torch.randn(1, H, T, D, device=CUDA, dtype=torch.bfloat16)

    def theirs_and_window() -> None:
        theirs()
        torch.autograd.grad(window(), inputs, into_window)

    print(f"fla chunk_gla with feature maps, and gradients, T {T}: {graph_microseconds([theirs]):.0f} us", flush=True)
    print(f"the same and windowed flex attention: {graph_microseconds([theirs_and_window]):.0f} us", flush=True)


def peers() -> None:
    """Time the parts that other libraries have."""
    flash_linear_attention()
    windowed_flex_attention()


@torch.no_grad()
def flash_linear_attention() -> None:
    """Time flash-linear-attention's kernels, whose keys and values are repeated to the query heads."""
    from fla.ops.gla import chunk_gla, fused_recurrent_gla

    def heads(length: int) -> list[torch.Tensor]:
        query, key, value = (torch.randn(1, length, H, D, device=CUDA, dtype=torch.bfloat16) for _ in range(3))
        return [query, key, value]

    def recurrence() -> Callable[[], Any]:
        query, key, value = heads(1)
        state = torch.randn(1, H, D, D, device=CUDA)
        return partial(fused_recurrent_gla, query, key, value, key, initial_state=state, output_final_state=True)

    time = graph_microseconds([recurrence() for _ in range(64)])
    print(f"fla fused_recurrent_gla, batch 1: {time:.2f} us", flush=True)
    query, key, value = heads(T)
    gate = F.logsigmoid(key.float()) / 16

    def kernel_only() -> None:
        chunk_gla(query, key, value, gate, scale=1.0, output_final_state=True)

    def with_feature_maps() -> None:
        gates = F.logsigmoid(key.float()) / 16
        chunk_gla(query.softmax(-1), key.softmax(-1), value, gates, scale=1.0, output_final_state=True)

    print(f"fla chunk_gla, T {T}: {graph_microseconds([kernel_only]):.0f} us", flush=True)
    print(f"fla chunk_gla with feature maps, T {T}: {graph_microseconds([with_feature_maps]):.0f} us", flush=True)


@torch.no_grad()
def windowed_flex_attention() -> None:
    """Time PyTorch's FlexAttention over the window."""
    attend, _ = windowed_flex(requires_grad=False)
    print(f"windowed flex attention, T {T}: {graph_microseconds([attend]):.0f} us", flush=True)


def windowed_flex(requires_grad: bool) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    """Return FlexAttention over the window as a function of nothing, and its query, key and value."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def in_window(batch: Any, head: Any, query_at: Any, key_at: Any) -> Any:
        return (query_at >= key_at) & (query_at - key_at < W)

    options: dict[str, Any] = {"device": CUDA, "dtype": torch.bfloat16, "requires_grad": requires_grad}
    inputs = [torch.randn(1, heads, T, D, **options) for heads in (H, G, G)]
    mask = create_block_mask(in_window, None, None, T, T, device=CUDA)
    return partial(torch.compile(flex_attention), *inputs, block_mask=mask, enable_gqa=True), inputs


PARTS: dict[str, tuple[Callable[[], None], ...]] = {
    "errors": (errors,),
    "step": (partial(steps, 1), partial(steps, 64)),
    "chunk": (prefill,),
    "training": (training,),
    "peers": (peers,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure; default: all")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}")
    torch.manual_seed(0)
    print(f"copy: {copy_bandwidth() / 1e12:.2f} TB/s", flush=True)
    for name in args.parts:
        try:
            for measure in PARTS[name]:
                measure()
        except ImportError as missing:
            print(f"skipped {name}: {missing}")


if __name__ == "__main__":
    main()
