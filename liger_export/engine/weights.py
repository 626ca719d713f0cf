"""Weights of a package as a source of rows, so that other graphs can be written without the checkpoint."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from liger_export.checkpoint import expected_tensors
from liger_export.errors import PackageError
from liger_export.package import MODEL_FILES, STOCK, Manifest
from liger_export.precision import Scheme
from liger_export.quantize.blocks import Blocks, dequantize

__all__ = ["PackagedWeights"]

SUFFIXES = ("", ".packed3d", ".packed2d", ".scales", ".zero_points")  # of initializers, after the weight's name


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one checkpoint tensor in the package.

    Attributes:
        arrays: arrays mapped from the weight file, by the suffix of the initializer's name (``SUFFIXES``).
        first: index of the tensor's first row in them.
    """

    arrays: dict[str, npt.NDArray[np.generic]]
    first: int


class PackagedWeights:
    """Rows of the checkpoint tensors, read from the package that was converted from them."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._shapes = expected_tensors(manifest.model_config)
        self._precision = manifest.precision
        self._parts: dict[str, _Part] = {}
        graph = onnx.load(directory / MODEL_FILES[STOCK], load_external_data=False).graph
        stored = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
        for name, tensor in stored.items():
            suffix = max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len)
            array = _mapped(directory, tensor)
            first = 0
            for part in _tensors(name.removesuffix(suffix)):
                self._parts.setdefault(part, _Part({}, first)).arrays[suffix] = array
                first += self._shapes[part][0] if part in self._shapes else len(array)
        missing = self._shapes.keys() - self._parts.keys()
        if missing:
            raise PackageError(f"{directory} does not contain {min(missing)}.", "Convert the checkpoint again.")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a checkpoint tensor."""
        return self._shapes.get(name) or self._parts[name].arrays[""].shape

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return rows of a tensor in float32; quantized rows are dequantized."""
        scheme = self._precision.scheme(name) if len(self.shape(name)) == 2 else None
        if scheme is not None:
            return dequantize(self.blocks(name, start, stop, scheme), scheme)
        part = self._parts[name]
        return part.arrays[""][part.first + start : part.first + stop].astype(np.float32)

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Return rows of a quantized matrix. Raises PackageError if it is not quantized."""
        part = self._parts[name]
        rows = slice(part.first + start, part.first + stop)
        packed = part.arrays.get(".packed3d", part.arrays.get(".packed2d"))
        if packed is None:
            raise PackageError(f"{name} is not stored as integers.", "Convert the checkpoint again.")
        zero_points = part.arrays.get(".zero_points")
        return Blocks(
            packed[rows].reshape(stop - start, -1).view(np.uint8),
            part.arrays[".scales"][rows].astype(np.float32),
            None if zero_points is None else zero_points[rows].view(np.uint8),
        )


def _tensors(name: str) -> list[str]:
    """Checkpoint tensors in an initializer: ``...q_proj+k_proj+v_proj.weight`` stacks the rows of three."""
    prefix, _, kind = name.rpartition(".")
    parent, _, modules = prefix.rpartition(".")
    return [f"{parent}.{module}.{kind}" for module in modules.split("+")] if "+" in modules else [name]


def _mapped(directory: Path, tensor: onnx.TensorProto) -> npt.NDArray[np.generic]:
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    data = np.memmap(directory / where["location"], np.uint8, "r", int(where["offset"]), prod(shape) * dtype.itemsize)
    mapped: npt.NDArray[np.generic] = data.view(dtype).reshape(shape)
    return mapped
