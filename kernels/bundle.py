"""Builds as one run of bytes, which a CUDA graph carries to the operator library.

A bundle is a text header, ended by the line ``end``, followed by the cubins. The header's lines:

    liger-kernels VERSION
    shape MIXER NUM_KEY_VALUE_HEADS NUM_QUERIES_PER_KV HEAD_DIM WINDOW ACTIVATION
    kernel CAPABILITY NAME SYMBOL THREADS SHARED_BYTES DEPENDENT GRID OFFSET SIZE ARGUMENTS

There is one ``kernel`` line per kernel and target. NAME is ``Plan.name``; SYMBOL is the function in the cubin.
DEPENDENT is 1 for kernels launched with programmatic dependent launch. GRID is three axes TIMES:OF:PER
(``plans.Axis``), separated by commas. ARGUMENTS are NAME:TYPE, separated by commas, in launch order. OFFSET counts from
the first byte after the header. The reader is plugins/ort/cuda_kernels.cpp.
"""

from dataclasses import astuple
from typing import Any

from liger_export.errors import KernelError
from liger_export.kernels.build import Build
from liger_export.kernels.targets import TARGETS

__all__ = ["pack"]

VERSION = 2


def pack(builds: list[Build]) -> bytes:
    """Pack builds of one shape, each for another target, into a bundle.

    Raises:
        KernelError: there are no builds, or they have different shapes.
    """
    shapes = {build.shape for build in builds}
    if len(shapes) != 1:
        raise KernelError(f"A bundle holds kernels of one shape, not of {len(shapes)}.", "Pack one bundle per shape.")
    lines = [f"liger-kernels {VERSION}", " ".join(map(str, ("shape", *astuple(shapes.pop()))))]
    offsets: dict[bytes, int] = {}  # kernels with the same code share it
    size = 0
    for build in builds:
        for name, description in build.kernels.items():
            cubin = build.cubins[name]
            if cubin not in offsets:
                offsets[cubin] = size
                size += len(cubin)
            lines.append(_line(TARGETS[build.target], name, description, offsets[cubin], len(cubin)))
    return "\n".join([*lines, "end\n"]).encode() + b"".join(offsets)


def _line(capability: int, name: str, description: dict[str, Any], offset: int, size: int) -> str:
    grid = ",".join(f"{axis['times']}:{axis['of']}:{axis['per']}" for axis in description["grid"])
    arguments = ",".join(f"{argument['name']}:{argument['type']}" for argument in description["arguments"])
    fields = [description[field] for field in ("name", "threads", "shared_bytes")]
    fields += [int(description["dependent"]), grid, offset, size, arguments]
    return " ".join(map(str, ("kernel", capability, name, *fields)))
