"""Builds as one run of bytes, which a fused graph carries to the operator library.

A bundle is a text of lines, ended by ``end``, and behind it the cubins. Its lines:

    liger-kernels VERSION
    shape MIXER GROUPS REPEATS HEAD_DIM WINDOW ACTIVATION
    kernel CAPABILITY NAME SYMBOL THREADS SHARED_BYTES DEPENDENT GRID OFFSET SIZE ARGUMENTS

with one kernel a line. DEPENDENT is 1 where a kernel may begin before the one before has ended. GRID is three axes
TIMES:OF:PER (``plans.Axis``), joined by commas; ARGUMENTS are NAME:TYPE, joined by commas, in the order of the launch;
OFFSET counts from the first byte behind the text. The reader is plugins/ort/cuda_kernels.cpp.
"""

from dataclasses import astuple
from typing import Any

from liger_export.errors import KernelError
from liger_export.kernels.build import TARGETS, Build

__all__ = ["pack"]

VERSION = 2


def pack(builds: list[Build]) -> bytes:
    """Builds of one shape, for one target each, as a bundle.

    Raises:
        KernelError: there are no builds, or they are of several shapes.
    """
    shapes = {build.shape for build in builds}
    if len(shapes) != 1:
        raise KernelError(f"A bundle holds kernels of one shape, not of {len(shapes)}.", "Pack each shape by itself.")
    lines = [f"liger-kernels {VERSION}", " ".join(map(str, ("shape", *astuple(shapes.pop()))))]
    offsets: dict[bytes, int] = {}  # layers of different sizes may share code
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
