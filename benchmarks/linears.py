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
CUTS = {
    DENSE: list(itertools.product((1, 2, 4), (512, 1024, 2048), (2, 4))),
    INTEGER: list(itertools.product((4, 8, 16), (512, 1024, 2048, 4096), (2, 4, 8))),
}
GROUP = 32
BYTES = 400 << 20  # of weights in turn


def arguments(layer: str, kind: str) -> list[tuple[Any, ...]]:
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
            scales = torch.rand(height, columns // GROUP, device="cuda").half()
            zeros = torch.zeros(height, (columns // GROUP + 1) // 2, device="cuda", dtype=torch.uint8)
            weight, flags = (words, scales, zeros), (int(normed), 1, 0, int(added))
        calls.append((hidden, norm, *weight, bias, residual, output, columns, rows, 1e-5, *flags))
    return calls


def launch(kind: str, cut: tuple[int, int, int], gated: bool, values: tuple[Any, ...], *, warm: bool = False) -> Any:
    """Start one call, or only compile it."""
    block_n, block_k, warps = cut
    kernel = linear_kernel if kind == DENSE else integer_linear_kernel
    rows = values[7 if kind == DENSE else 9]
    constants = {} if kind == DENSE else {"BITS": 4, "GROUP": GROUP, "NATIVE": True}
    constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k, "GATED": gated, "PDL": True}
    options = {"num_warps": warps, "num_stages": 1, "launch_pdl": True}
    grid = (-(-rows // block_n), 1)
    if warm:
        return kernel.warmup(*values, **constants, **options, grid=grid)
    return kernel[grid](*values, **constants, **options)


def compile_one(what: tuple[str, tuple[int, int, int], bool]) -> None:
    kind, cut, gated = what
    launch(kind, cut, gated, arguments("1b gate_up" if gated else "1b qkv", kind)[0], warm=True)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jobs = [(kind, cut, gated) for kind in args.kinds for cut in CUTS[kind] for gated in (False, True)]
    with ProcessPoolExecutor(15) as pool:
        list(pool.map(compile_one, jobs, chunksize=4))
    print("compiled", flush=True)
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "layers": {}}
    for layer, (rows, columns, gated, _, _) in LAYERS.items():
        for kind in args.kinds:
            values = arguments(layer, kind)
            found = {}
            for cut in CUTS[kind]:
                calls = [lambda v=v, c=cut: launch(kind, c, gated, v) for v in values]  # noqa: B023
                found[str(cut)] = microseconds(calls)
            if kind == DENSE:
                found["cublas"] = microseconds([lambda v=v: F.linear(v[0], v[2]) for v in values])
            best = sorted(found.items(), key=lambda item: item[1])
            nbytes = rows * columns * (2 if gated else 1) * (2 if kind == DENSE else 0.5 + 2.5 / GROUP)
            shares = [f"{name} {time:.2f}" for name, time in best[:6]]
            print(layer, kind, f"{nbytes / best[0][1] / 1e6:.2f} TB/s", shares, found.get("cublas"), flush=True)
            report["layers"][f"{layer} {kind}"] = found
            del values
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
