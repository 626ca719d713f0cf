"""The kernels' accuracy and speed on one GPU, beside flash-linear-attention, flex attention and a plain copy.

One layer of Llama-3-8B's shape: 32 query heads, 8 key/value heads, head size 128, window 64, bfloat16. Times are of
replayed CUDA graphs; steps take turns on so many states that none is left in the cache. flash-linear-attention chooses
among many configurations before its first figure, which takes minutes.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --parts chunk peers
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from liger_export.kernels.launch import chunkwise, step, step_in_place
from liger_export.ops import NAIVE_ATTENTIONS
from liger_export.parity.compare import relative_l2

H, G, D, W, T = 32, 8, 128, 64, 4096
OPTIONS = {"gate_normalizer": 16.0, "recurrent_weight": 0.5}
CUDA = "cuda"


def microseconds(run: Callable[[], Any], calls: int = 1, repeats: int = 30) -> float:
    """Median of a captured graph's replays, for each of its calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def layer(batch: int, length: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any, Any]:
    """Projections in packed rows, positions and a full state, all random."""
    packed = torch.randn(batch, length, (H + 2 * G) * D, device=CUDA).to(dtype)
    angles = torch.rand(batch, length, D // 2, device=CUDA) * 6
    position_ids = (1000 + torch.arange(length, device=CUDA)).expand(batch, -1).contiguous()
    window = [torch.randn(batch, G, W, D, device=CUDA).to(dtype) for _ in range(2)]
    state = (torch.randn(batch, G, D, D, device=CUDA), *window)
    return packed.split((H * D, G * D, G * D), dim=-1), (angles.cos(), angles.sin(), position_ids), state


def errors() -> None:
    """Relative L2 of output and state against float64, from an empty state."""
    length = 200
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        projections, (cos, sin, position_ids), state = layer(1, length, dtype)
        position_ids, angles = position_ids - 1000, torch.atan2(sin.double(), cos.double())
        state = tuple(torch.zeros_like(tensor) for tensor in state)
        heads = [part.double().unflatten(-1, (-1, D)).cpu() for part in projections]
        expected, memory, *_ = NAIVE_ATTENTIONS["gla"](*heads, angles.cpu(), W, **OPTIONS)
        whole = chunkwise("gla", projections, (cos, sin, position_ids), state, **OPTIONS)
        outputs, steps = [], state
        for t in range(length):
            here = slice(t, t + 1)
            now = tuple(part[:, here] for part in projections)
            at = (cos[:, here], sin[:, here], position_ids[:, here])
            output, *steps = step("gla", now, at, tuple(steps), **OPTIONS)
            outputs.append(output)
        for name, output, after in (("chunk", whole[0], whole[1]), ("step", torch.cat(outputs, 1), steps[0])):
            found = [(output.cpu().double(), expected.flatten(2)), (after.cpu().double(), memory)]
            relative = [relative_l2(a.numpy(), b.numpy()) for a, b in found]
            print(f"{name} {dtype}: output {relative[0]:.1e}, state {relative[1]:.1e}", flush=True)


def steps(batch: int) -> None:
    """One token of a batch, in place and by the contract."""
    layers = [layer(batch, 1) for _ in range(max(12, 128 // batch))]
    for name, form in (("in place, ring", step_in_place), ("out of place, oldest first", step)):
        time = microseconds(lambda form=form: [form("gla", *each, **OPTIONS) for each in layers], len(layers))
        each_once = sum(tensor.nbytes for tensor in layers[0][2]) + layers[0][2][0].nbytes
        print(f"step, batch {batch}, {name}: {time:.2f} us; {each_once / time / 1e6:.2f} TB/s of state", flush=True)


def prefill() -> None:
    """Many tokens, ours and the parts that others have."""
    for dtype in (torch.bfloat16, torch.float32):
        inputs = layer(1, T, dtype)
        print(
            f"chunk, T {T}, {dtype}: {microseconds(lambda inputs=inputs: chunkwise('gla', *inputs, **OPTIONS)):.0f} us",
            flush=True,
        )


def copy_bandwidth() -> None:
    """Bytes read and written by a copy of 2 GB."""
    source = torch.randn(2**29, device=CUDA)
    target = torch.empty_like(source)
    time = microseconds(lambda: torch.add(source, 1, out=target))
    print(f"copy: {2 * source.nbytes / time / 1e6:.2f} TB/s", flush=True)


def peers() -> None:
    """flash-linear-attention's kernels, which take keys and values repeated to the query heads."""
    from fla.ops.gla import chunk_gla, fused_recurrent_gla

    def heads(length: int) -> list[torch.Tensor]:
        query, key, value = (torch.randn(1, length, H, D, device=CUDA, dtype=torch.bfloat16) for _ in range(3))
        return [query, key, value]

    with torch.no_grad():
        sets = [(*heads(1), torch.randn(1, H, D, D, device=CUDA)) for _ in range(64)]

        def recurrence() -> None:
            for query, key, value, state in sets:
                fused_recurrent_gla(query, key, value, key, initial_state=state, output_final_state=True)

        print(f"fla fused_recurrent_gla, batch 1: {microseconds(recurrence, len(sets)):.2f} us", flush=True)
        query, key, value = heads(T)
        gate = F.logsigmoid(key.float()) / 16

        def alone() -> None:
            chunk_gla(query, key, value, gate, scale=1.0, output_final_state=True)

        def mapped() -> None:
            gates = F.logsigmoid(key.float()) / 16
            chunk_gla(query.softmax(-1), key.softmax(-1), value, gates, scale=1.0, output_final_state=True)

        print(f"fla chunk_gla, T {T}: {microseconds(alone):.0f} us", flush=True)
        print(f"fla chunk_gla with feature maps, T {T}: {microseconds(mapped):.0f} us", flush=True)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def band(batch: Any, head: Any, to: Any, at: Any) -> Any:
        return (to >= at) & (to - at < W)

    query, key, value = (torch.randn(1, n, T, D, device=CUDA, dtype=torch.bfloat16) for n in (H, G, G))
    mask = create_block_mask(band, None, None, T, T, device=CUDA)
    flex = torch.compile(flex_attention)
    time = microseconds(lambda: flex(query, key, value, block_mask=mask, enable_gqa=True))
    print(f"windowed flex attention, T {T}: {time:.0f} us", flush=True)


PARTS: dict[str, tuple[Callable[[], None], ...]] = {
    "errors": (errors,),
    "step": (lambda: steps(1), lambda: steps(64)),
    "chunk": (prefill,),
    "peers": (peers,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}")
    torch.manual_seed(0)
    copy_bandwidth()
    for name in args.parts:
        try:
            for measure in PARTS[name]:
                measure()
        except ImportError as missing:
            print(f"left out: {missing}")


if __name__ == "__main__":
    main()
