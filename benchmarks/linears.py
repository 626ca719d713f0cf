"""The linear kernels on one GPU, cut in different ways, beside cuBLAS: which cut is fastest for which layer.

Times are of replayed CUDA graphs whose calls take turns on so many weights that none is left in the cache.

    python benchmarks/linears.py --json linears.json
"""

import argparse
import itertools
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from liger_export.kernels.linear import integer_linear_kernel, linear_kernel
from liger_export.kernels.plans import MULTIPROCESSORS, linear_plan
from liger_export.kernels.shapes import LinearShape, block_of

LAYERS = {  # rows of the result, columns, whether it is gated, normalised, added to the residual
    "1b qkv": (3072, 2048, False, True, False),
    "1b o": (2048, 2048, False, False, True),
    "1b gate_up": (8192, 2048, True, True, False),
    "1b down": (2048, 8192, False, False, True),
    "1b head": (128256, 2048, False, True, False),
    "8b qkv": (6144, 4096, False, True, False),
    "8b o": (4096, 4096, False, False, True),
    "8b gate_up": (14336, 4096, True, True, False),
    "8b down": (4096, 14336, False, False, True),
    "8b head": (128256, 4096, False, True, False),
}
DENSE, INTEGER = "fp16", "int4"
CUTS = {  # rows at a time, warps, registers of a thread if they are bounded
    DENSE: list(itertools.product((1, 2, 4), (4, 8), (0,))),
    INTEGER: list(itertools.product((4, 8, 16), (2, 4, 8, 16), (0, 128))),
}
PROGRAMS = (1, 2, 3, 4, 6, 8)  # of a multiprocessor
MOST_ROWS = 128
MOST_WORDS = 96  # of a thread's block of rows: more need more registers than there are
BYTES = 400 << 20  # of weights in turn


Cut = tuple[int, int, int]


def arguments(layer: str, kind: str, group: int) -> list[tuple[Any, ...]]:
    """Arguments of calls in turn."""
    rows, columns, gated, normed, added = LAYERS[layer]
    height = rows * (2 if gated else 1)
    hidden = torch.randn(1, columns, device="cuda").half()
    norm, bias = torch.ones(columns, device="cuda").half(), torch.zeros(height, device="cuda").half()
    residual, output = torch.randn(1, rows, device="cuda").half(), torch.empty(1, rows, device="cuda").half()
    nbytes = height * columns * (2 if kind == DENSE else 0.5)
    calls: list[tuple[Any, ...]] = []
    for _ in range(max(2, min(64, int(BYTES / nbytes)))):
        if kind == DENSE:
            weight: tuple[torch.Tensor, ...] = (torch.randn(height, columns, device="cuda", dtype=torch.half),)
            flags: tuple[int, ...] = (int(normed), 0, int(added))
        else:
            words = torch.randint(-(2**31), 2**31 - 1, (height, columns // 8), device="cuda", dtype=torch.int32)
            scales = torch.rand(height, columns // group, device="cuda").half()
            zeros = torch.zeros(height, (columns // group + 1) // 2, device="cuda", dtype=torch.uint8)
            weight, flags = (words, scales, zeros), (int(normed), 1, 0, int(added))
        calls.append((hidden, norm, *weight, bias, residual, output, columns, rows, 1e-5, *flags))
    return calls


def cuts_of(layer: str, kind: str) -> list[Cut]:
    """Cuts whose threads have something to read, and room for it."""
    _, columns, gated, _, _ = LAYERS[layer]
    words = block_of(columns) * (4 if kind == INTEGER else 16) // 32

    def fits(cut: Cut) -> bool:
        block_n, warps, _ = cut
        return 4 <= block_n * words * (1 + gated) / (32 * warps) <= MOST_WORDS and words >= 4 * warps

    return [cut for cut in CUTS[kind] if fits(cut)]


def grids_of(layer: str, block_n: int) -> set[int]:
    """Numbers of programs to try."""
    rows = LAYERS[layer][0]
    each = {min(-(-rows // (MULTIPROCESSORS * count * block_n)) * block_n, MOST_ROWS) for count in PROGRAMS}
    return {-(-rows // size) for size in each}


def launch(
    kind: str, layer: str, cut: Cut, programs: int, group: int, values: tuple[Any, ...], *, warm: bool = False
) -> Any:
    """Start one call, or only compile it."""
    block_n, warps, registers = cut
    _, columns, gated, _, _ = LAYERS[layer]
    kernel = linear_kernel if kind == DENSE else integer_linear_kernel
    constants = {} if kind == DENSE else {"BITS": 4, "GROUP": group, "NATIVE": True}
    block_k = block_of(columns)
    constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k, "EVEN": block_k == columns, "GATED": gated, "PDL": True}
    options = {"num_warps": warps, "num_stages": 1, "launch_pdl": True} | ({"maxnreg": registers} if registers else {})
    if warm:
        return kernel.warmup(*values, **constants, **options, grid=(1, 1))
    return kernel[(programs, 1)](*values, **constants, **options)


def compile_one(job: tuple[str, str, Cut, int]) -> None:
    kind, layer, cut, group = job
    launch(kind, layer, cut, 1, group, arguments(layer, kind, group)[0], warm=True)


def microseconds(calls: list[Any]) -> float:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        times = []
        for _ in range(7):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def measure(layer: str, kind: str, group: int) -> dict[str, float]:
    """Microseconds of a layer by "rows of a program, rows at a time, warps, registers", and of cuBLAS."""
    values, found = arguments(layer, kind, group), {}
    for cut in cuts_of(layer, kind):
        for programs in grids_of(layer, cut[0]):
            calls = [lambda v=v, c=cut, p=programs: launch(kind, layer, c, p, group, v) for v in values]
            found[str((-(-LAYERS[layer][0] // programs), *cut))] = microseconds(calls)
    if kind == DENSE:
        found["cublas"] = microseconds([lambda v=v: F.linear(v[0], v[2]) for v in values])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--block-size", type=int, default=32, help="columns that share a scale")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    group = args.block_size
    jobs = [(kind, layer, cut, group) for kind in args.kinds for layer in LAYERS for cut in cuts_of(layer, kind)]
    with ProcessPoolExecutor(15) as pool:
        list(pool.map(compile_one, jobs, chunksize=2))
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "block size": group, "layers": {}}
    for layer, (rows, columns, gated, _, _) in LAYERS.items():
        for kind in args.kinds:
            found = measure(layer, kind, group)
            best = sorted((time, cut) for cut, time in found.items() if cut != "cublas")
            bits = 16 if kind == DENSE else 4
            chosen = linear_plan(LinearShape(rows, columns, bits, 0 if kind == DENSE else group, gated)).name
            nbytes = rows * columns * (2 if gated else 1) * (2 if kind == DENSE else 0.5 + 2.5 / group)
            shares = ", ".join(f"{cut} {time:.2f}" for time, cut in best[:6])
            peer = f"; cuBLAS {found['cublas']:.2f}" if kind == DENSE else ""
            print(f"{layer} {kind}: {nbytes / best[0][0] / 1e6:.2f} TB/s; {shares}{peer}; taken: {chosen}", flush=True)
            report["layers"][f"{layer} {kind}"] = found
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
