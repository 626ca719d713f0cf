"""Speed of the linear kernels on one GPU by tiling, next to cuBLAS: finds the fastest tiling for each layer.

Times are those of replayed CUDA graphs whose calls rotate over enough weights that none stays in the cache.

    python benchmarks/linears.py --json linears.json
"""

import argparse
import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import graph_microseconds

from liger_export.kernels.linear import integer_linear_kernel, linear_kernel
from liger_export.kernels.plans import MULTIPROCESSORS, linear_plan
from liger_export.kernels.shapes import LinearShape, block_of

LAYERS = {  # output rows, columns, gated, normalized, added to the residual
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
TILINGS = {  # rows per tile, warps, maximum registers per thread or 0
    DENSE: list(itertools.product((1, 2, 4), (4, 8), (0,))),
    INTEGER: list(itertools.product((4, 8, 16), (2, 4, 8, 16), (0, 128))),
}
PROGRAMS = (1, 2, 3, 4, 6, 8)  # per multiprocessor
MAX_ROWS = 128  # per program
MAX_WORDS = 96  # per thread: more do not fit into the registers
BYTES = 400 << 20  # weights to rotate over

Tiling = tuple[int, int, int]


def arguments(layer: str, kind: str, block_size: int) -> list[tuple[Any, ...]]:
    """Return the arguments of calls that rotate over different weights."""
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
            scales = torch.rand(height, columns // block_size, device="cuda").half()
            zeros = torch.zeros(height, (columns // block_size + 1) // 2, device="cuda", dtype=torch.uint8)
            weight, flags = (words, scales, zeros), (int(normed), 1, 0, int(added))
        calls.append((hidden, norm, *weight, bias, residual, output, columns, rows, 1e-5, *flags))
    return calls


def tilings_of(layer: str, kind: str) -> list[Tiling]:
    """Return the tilings whose threads have enough to read, and enough registers to hold it."""
    _, columns, gated, _, _ = LAYERS[layer]
    words = block_of(columns) * (4 if kind == INTEGER else 16) // 32

    def fits(tiling: Tiling) -> bool:
        block_n, warps, _ = tiling
        return 4 <= block_n * words * (1 + gated) / (32 * warps) <= MAX_WORDS and words >= 4 * warps

    return [tiling for tiling in TILINGS[kind] if fits(tiling)]


def grids_of(layer: str, block_n: int) -> set[int]:
    """Return the numbers of programs to try."""
    rows = LAYERS[layer][0]
    each = {min(-(-rows // (MULTIPROCESSORS * count * block_n)) * block_n, MAX_ROWS) for count in PROGRAMS}
    return {-(-rows // size) for size in each}


def launch(
    kind: str,
    layer: str,
    tiling: Tiling,
    programs: int,
    block_size: int,
    values: tuple[Any, ...],
    *,
    warm: bool = False,
) -> Any:
    """Launch the kernel once, or only compile it."""
    block_n, warps, registers = tiling
    _, columns, gated, _, _ = LAYERS[layer]
    kernel = linear_kernel if kind == DENSE else integer_linear_kernel
    constants = {} if kind == DENSE else {"BITS": 4, "GROUP": block_size, "NATIVE": True}
    block_k = block_of(columns)
    constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k, "EVEN": block_k == columns, "GATED": gated, "PDL": True}
    options = {"num_warps": warps, "num_stages": 1, "launch_pdl": True} | ({"maxnreg": registers} if registers else {})
    if warm:
        return kernel.warmup(*values, **constants, **options, grid=(1, 1))
    return kernel[(programs, 1)](*values, **constants, **options)


def compile_one(job: tuple[str, str, Tiling, int]) -> None:
    kind, layer, tiling, block_size = job
    launch(kind, layer, tiling, 1, block_size, arguments(layer, kind, block_size)[0], warm=True)


def measure(layer: str, kind: str, block_size: int) -> dict[str, float]:
    """Return microseconds by "(rows per program, rows per tile, warps, registers)", and those of cuBLAS."""
    values, found = arguments(layer, kind, block_size), {}
    for tiling in tilings_of(layer, kind):
        for programs in grids_of(layer, tiling[0]):
            calls = [partial(launch, kind, layer, tiling, programs, block_size, each) for each in values]
            found[str((-(-LAYERS[layer][0] // programs), *tiling))] = graph_microseconds(calls, repeats=5)
    if kind == DENSE:
        found["cublas"] = graph_microseconds([partial(F.linear, each[0], each[2]) for each in values], repeats=5)
    return found


def summary(layer: str, kind: str, block_size: int, found: dict[str, float]) -> str:
    """Format the fastest tilings of a layer next to cuBLAS and the tiling that the runtime uses."""
    rows, columns, gated, _, _ = LAYERS[layer]
    best = sorted((time, tiling) for tiling, time in found.items() if tiling != "cublas")
    bits = 16 if kind == DENSE else 4
    used = linear_plan(LinearShape(rows, columns, bits, 0 if kind == DENSE else block_size, gated)).name
    nbytes = rows * columns * (2 if gated else 1) * (2 if kind == DENSE else 0.5 + 2.5 / block_size)
    fastest = ", ".join(f"{tiling} {time:.2f}" for time, tiling in best[:6])
    peer = f"; cuBLAS {found['cublas']:.2f}" if kind == DENSE else ""
    return f"{layer} {kind}: {nbytes / best[0][0] / 1e6:.2f} TB/s; {fastest}{peer}; used: {used}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=TILINGS, default=list(TILINGS), help="default: both")
    parser.add_argument("--block-size", type=int, default=32, help="columns that share a scale (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the times of all tilings")
    args = parser.parse_args()
    jobs = [
        (kind, layer, tiling, args.block_size)
        for kind in args.kinds
        for layer in LAYERS
        for tiling in tilings_of(layer, kind)
    ]
    with ProcessPoolExecutor(15) as pool:
        list(pool.map(compile_one, jobs, chunksize=2))
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "block size": args.block_size, "layers": {}}
    for layer in LAYERS:
        for kind in args.kinds:
            found = measure(layer, kind, args.block_size)
            print(summary(layer, kind, args.block_size, found), flush=True)
            report["layers"][f"{layer} {kind}"] = found
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
