"""Stream a checkpoint's weights into one external-data file, a few rows at a time, in the layout the graph reads."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from liger_export.errors import QuantizationError
from liger_export.precision import Scheme
from liger_export.progress import NO_PROGRESS, Progress
from liger_export.quantize.blocks import Blocks, block_offsets, largest_value

__all__ = [
    "ALIGNMENT",
    "DenseWeight",
    "IntegerWeight",
    "SignedWeight",
    "Weight",
    "WeightSource",
    "attach_weights",
    "declare_weight",
    "weight_bytes",
]

ALIGNMENT = 4096  # bytes per page, so that a runtime can memory-map each tensor
BLOCK_BYTES = 4 << 20  # of float32 rows per task: what a core's cache holds
THREADS = 2  # one reads or writes while the other quantizes

Rows = npt.NDArray[np.float32]
Task = Callable[[int], int]  # writes some rows to a file descriptor and returns the number of bytes


class WeightSource(Protocol):
    """A source of rows: a checkpoint, and a method to quantize its weights."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a checkpoint tensor."""

    def rows(self, name: str, start: int, stop: int) -> Rows:
        """Return rows of a tensor in float32."""

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Return rows of a matrix, quantized."""


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """Checkpoint tensors, stacked, as one initializer in the activations' dtype.

    Attributes:
        value: the initializer, without data.
        tensors: checkpoint names.
    """

    value: ir.Value
    tensors: tuple[str, ...]

    def values(self) -> list[tuple[ir.Value, ...]]:
        """Return the initializers; those in one tuple are views of the same bytes."""
        return [(self.value,)]

    def write(
        self, source: WeightSource, name: str, start: int, stop: int, row: int, offsets: list[int], file: int
    ) -> int:
        """Write rows of one tensor, starting at row ``row`` of the stack. Returns the bytes written."""
        rows = _cast(source.rows(name, start, stop), self.value, name)
        return _write_rows(file, rows, row, offsets[0])


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """Matrices, stacked, as MatMulNBits and GatherBlockQuantized read them.

    Attributes:
        tensors: checkpoint names.
        scheme: how they are quantized.
        packed: the initializer of the integers, and a second view of it if a table and a product share it.
        scales: the initializer of the scales.
        zero_points: the initializer of the zero points, if the scheme has them.
    """

    tensors: tuple[str, ...]
    scheme: Scheme
    packed: tuple[ir.Value, ...]
    scales: ir.Value
    zero_points: ir.Value | None

    def values(self) -> list[tuple[ir.Value, ...]]:
        """Return the initializers; those in one tuple are views of the same bytes."""
        return [self.packed, (self.scales,), *([(self.zero_points,)] if self.zero_points else [])]

    def write(
        self, source: WeightSource, name: str, start: int, stop: int, row: int, offsets: list[int], file: int
    ) -> int:
        """Write rows as ``DenseWeight.write`` does."""
        blocks = source.blocks(name, start, stop, self.scheme)
        _check_range(largest_value(blocks, self.scheme), self.scales, name)
        scales = blocks.scales.astype(_numpy_dtype(self.scales), copy=False)
        parts = (blocks.packed, scales, *([] if blocks.zero_points is None else [blocks.zero_points]))
        return sum(_write_rows(file, part, row, offset) for part, offset in zip(parts, offsets, strict=True))


@dataclass(frozen=True, slots=True)
class SignedWeight:
    """A matrix for DequantizeLinear as engines support it: signed integers with zero point 0, and positive scales.

    Attributes:
        tensors: the checkpoint name.
        scheme: how it is quantized.
        integers: the initializer of the integers, [out, in].
        scales: the initializer of the scales, [out, blocks].
        offsets: the initializer of each block's offset, [out, blocks]: a value is scale * integer + offset. None for
            symmetric 4-bit integers, whose scales may be negative.
    """

    tensors: tuple[str, ...]
    scheme: Scheme
    integers: ir.Value
    scales: ir.Value
    offsets: ir.Value | None

    def values(self) -> list[tuple[ir.Value, ...]]:
        """Return the initializers, as ``IntegerWeight.values`` does."""
        return [(self.integers,), (self.scales,), *([(self.offsets,)] if self.offsets else [])]

    def write(
        self, source: WeightSource, name: str, start: int, stop: int, row: int, offsets: list[int], file: int
    ) -> int:
        """Write rows as ``DenseWeight.write`` does."""
        blocks = source.blocks(name, start, stop, self.scheme)
        _check_range(largest_value(blocks, self.scheme), self.scales, name)
        sign_bits = np.uint8(0x88 if self.scheme.bits == 4 else 0x80)  # u - 8 is u with its highest bit flipped
        integers, floats = blocks.packed ^ sign_bits, [blocks.scales]
        if self.offsets is not None:
            is_negative = blocks.scales < 0  # s i = |s| (-i - 1) + |s|, and -i - 1 is i with every bit flipped
            flipped = np.repeat(is_negative, self.scheme.row_bytes(self.scheme.block_size), axis=1)
            integers = np.where(flipped, ~integers, integers)
            size = abs(blocks.scales)
            floats = [size, block_offsets(blocks, self.scheme) + np.where(is_negative, size, 0)]
        parts = [integers, *(_cast(each, self.scales, name) for each in floats)]
        return sum(_write_rows(file, part, row, offset) for part, offset in zip(parts, offsets, strict=True))


Weight = DenseWeight | IntegerWeight | SignedWeight


def declare_weight(graph: ir.Graph, name: str, shape: list[int], dtype: ir.DataType) -> ir.Value:
    """Declare an initializer whose data ``attach_weights`` writes."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.initializers[name] = value
    return value


def weight_bytes(weights: list[Weight]) -> int:
    """Size of the external-data file, in bytes."""
    return sum(_aligned(_nbytes(views[0])) for weight in weights for views in weight.values())


def attach_weights(
    weights: list[Weight],
    source: WeightSource,
    data_file: Path,
    progress: Progress = NO_PROGRESS,
) -> None:
    """Write every weight to ``data_file`` and make the graph's initializers refer to it.

    Args:
        weights: the weights that a lowering returned.
        source: the checkpoint.
        data_file: file to create, in the folder of ``model.onnx``.
        progress: counts the bytes written.
    """
    position, tasks = 0, []
    for weight in weights:
        offsets = []
        for views in weight.values():
            offsets.append(position)
            for value in views:
                value.const_value = _external(value, data_file, position)
            position += _aligned(_nbytes(views[0]))
        tasks.append((weight, offsets))
    with data_file.open("wb") as stream, ThreadPoolExecutor(THREADS) as pool:
        stream.truncate(position)
        writes = (task for weight, offsets in tasks for task in _tasks(weight, offsets, source))
        for written in _results(pool, writes, stream.fileno()):
            progress.advance(written)
        os.fsync(stream.fileno())


def _tasks(weight: Weight, offsets: list[int], source: WeightSource) -> Iterator[Task]:
    """Split the writing of a weight into tasks of a few rows each."""
    above = 0
    for name in weight.tensors:
        rows, *rest = source.shape(name)
        step = max(1, BLOCK_BYTES // (4 * prod(rest)))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield partial(weight.write, source, name, start, stop, above + start, offsets)
        above += rows


def _results(pool: ThreadPoolExecutor, tasks: Iterator[Task], file: int) -> Iterator[int]:
    """Run tasks and yield their results; few run at once, to limit memory."""
    running: set[Future[int]] = set()
    while True:
        running |= {pool.submit(task, file) for task in islice(tasks, THREADS + 1 - len(running))}
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _cast(values: Rows, value: ir.Value, name: str) -> npt.NDArray[np.generic]:
    """Cast to the dtype of an initializer. Raises QuantizationError if a value does not fit."""
    _check_range(float(max(values.max(), -values.min())), value, name)
    return values.astype(_numpy_dtype(value), copy=False)


def _check_range(largest: float, value: ir.Value, name: str) -> None:
    """Check that the dtype of an initializer has values as large as ``largest``. Raises QuantizationError."""
    dtype = _numpy_dtype(value)
    with np.errstate(over="ignore"):
        fits = math.isfinite(float(np.array(largest, np.float32).astype(dtype)))
    if not fits:
        larger = "bf16 or fp32" if dtype == np.float16 else "fp32"
        raise QuantizationError(
            f"{name} has values up to {largest:g}, which {dtype} cannot represent.",
            f"Use {larger} for the weights, or for the activations if the weights are integers.",
        )


def _write_rows(file: int, rows: npt.NDArray[np.generic], row: int, offset: int) -> int:
    data = memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)  # the buffer protocol has no bfloat16
    position = offset + row * (data.nbytes // len(rows))
    written = 0
    while written < data.nbytes:
        written += os.pwrite(file, data[written:], position + written)
    return written


def _external(value: ir.Value, data_file: Path, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        data_file.name,
        offset,
        _nbytes(value),
        _dtype(value),
        shape=ir.Shape(_shape(value)),
        name=str(value.name),
        base_dir=data_file.parent,
    )


def _nbytes(value: ir.Value) -> int:
    return -(-prod(_shape(value)) * _dtype(value).bitwidth // 8)


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT


def _numpy_dtype(value: ir.Value) -> np.dtype[np.generic]:
    return _dtype(value).numpy()


def _dtype(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise TypeError(f"initializer {value.name} has no type")
    return value.dtype


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not value.shape.is_static():
        raise TypeError(f"initializer {value.name} has no fixed shape")
    return value.shape.numpy()
