"""Stream a checkpoint's weights into one external-data file, a few rows at a time."""

import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from liger_export.checkpoint import MergedCheckpoint
from liger_export.config import LigerConfig, inverse_frequencies

__all__ = ["ALIGNMENT", "attach_weights", "weight_bytes"]

ALIGNMENT = 4096  # a page, so that a runtime can map each tensor from the file
BLOCK_BYTES = 32 << 20
ROTARY = "model.rotary_emb.inv_freq"


def weight_bytes(model: ir.Model) -> int:
    """Size of the external-data file, in bytes, for float32 weights."""
    sizes = [4 * _elements(value) for name, value in model.graph.initializers.items() if _is_external(name, value)]
    return sum(size + -size % ALIGNMENT for size in sizes)


def attach_weights(
    model: ir.Model,
    weights: MergedCheckpoint,
    config: LigerConfig,
    data_file: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write every initializer's values to ``data_file`` as float32 and refer the graph to them.

    Args:
        model: a traced graph whose initializers carry checkpoint names.
        weights: the checkpoint, adapters merged on the way.
        config: the model.
        data_file: file to create, beside the future ``model.onnx``.
        progress: called with the bytes written since the last call.
    """
    model.graph.initializers[ROTARY].const_value = ir.tensor(inverse_frequencies(config.rope, config.head_dim))
    with data_file.open("wb") as stream:
        for name, value in model.graph.initializers.items():
            if not _is_external(name, value):
                continue
            offset = _align(stream)
            for rows in weights.blocks(name, BLOCK_BYTES):
                block = np.ascontiguousarray(rows.numpy())
                stream.write(block.data)
                progress(block.nbytes)
            value.const_value = ir.ExternalTensor(
                data_file.name,
                offset,
                4 * _elements(value),
                ir.DataType.FLOAT,
                shape=ir.Shape(_shape(value)),
                name=name,
                base_dir=data_file.parent,
            )
        stream.flush()
        os.fsync(stream.fileno())


def _is_external(name: str, value: ir.Value) -> bool:
    return name != ROTARY and value.dtype == ir.DataType.FLOAT


def _elements(value: ir.Value) -> int:
    return prod(_shape(value))


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not value.shape.is_static():
        raise TypeError(f"initializer {value.name} has no fixed shape")
    return value.shape.numpy()


def _align(stream: BinaryIO) -> int:
    offset = stream.tell()
    stream.write(bytes(-offset % ALIGNMENT))
    return stream.tell()
