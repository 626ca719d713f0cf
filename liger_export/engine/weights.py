"""A package's weights as a source of rows, so that another graph can be written from the package alone."""

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

FORMS = ("", ".packed3d", ".packed2d", ".scales", ".zero_points")  # what convert appends to a weight's name


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor's rows in the package.

    Attributes:
        arrays: by the ending of the initializer's name, one of ``FORMS``, mapped from the file.
        first: where its rows begin in them.
    """

    arrays: dict[str, npt.NDArray[np.generic]]
    first: int


class PackagedWeights:
    """Rows of the checkpoint tensors that a package was made of, as it stores them."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._shapes = expected_tensors(manifest.model_config)
        self._precision = manifest.precision
        self._parts: dict[str, _Part] = {}
        graph = onnx.load(directory / MODEL_FILES[STOCK], load_external_data=False).graph
        stored = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
        for name, tensor in stored.items():
            form = max((form for form in FORMS if name.endswith(form)), key=len)
            array = _mapped(directory, tensor)
            first = 0
            for part in _tensors(name.removesuffix(form)):
                self._parts.setdefault(part, _Part({}, first)).arrays[form] = array
                first += self._shapes[part][0] if part in self._shapes else len(array)
        missing = self._shapes.keys() - self._parts.keys()
        if missing:
            raise PackageError(f"{directory} holds no {min(missing)}.", "Convert the checkpoint again.")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a checkpoint tensor."""
        return self._shapes.get(name) or self._parts[name].arrays[""].shape

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows of a tensor, float32; of a rounded one the values that the package computes with."""
        scheme = self._precision.scheme(name) if len(self.shape(name)) == 2 else None
        if scheme is not None:
            return dequantize(self.blocks(name, start, stop, scheme), scheme)
        part = self._parts[name]
        return part.arrays[""][part.first + start : part.first + stop].astype(np.float32)

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        """Rows of a rounded matrix."""
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
    """Checkpoint names in an initializer's: ``...q_proj+k_proj+v_proj.weight`` holds three, one below the other."""
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
