"""Conversion between dtypes of numpy and ONNX Runtime. numpy has no bfloat16, so uint16 arrays hold its bits.

No state tensor has unsigned 16-bit integers: a uint16 array in a buffer, a saved state or a file is always bfloat16.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["element_type", "is_finite", "narrowed", "numpy_dtype", "widened"]

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype(np.uint16)
ELEMENT_TYPES = {np.dtype("float32"): 1, np.dtype("int64"): 7, np.dtype("float16"): 10, BFLOAT16: 16}
NOT_A_NUMBER = BFLOAT16.type(0x7FC0)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype for a dtype name from the state table."""
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def element_type(dtype: np.dtype[Any]) -> int:
    """Return the ONNX element type (``TensorProto.DataType``) for a numpy dtype."""
    return ELEMENT_TYPES[dtype]


def widened(array: Array) -> npt.NDArray[np.float32]:
    """Convert a floating-point tensor to float32. The conversion is exact."""
    if array.dtype == BFLOAT16:
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    return array.astype(np.float32, copy=False)


def is_finite(array: Array) -> bool:
    """Return False for a floating-point tensor with NaN or infinity."""
    is_float = array.dtype == BFLOAT16 or array.dtype.kind == "f"
    return not is_float or bool(np.isfinite(widened(array)).all())


def narrowed(values: npt.NDArray[np.float32], name: str) -> Array:
    """Convert float32 values to a dtype name from the state table, rounding to nearest, ties to even."""
    if name != "bfloat16":
        return values.astype(name, copy=False)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    above_half = np.uint32(0x7FFF) + (bits >> 16 & 1)  # carries into the upper half if the value rounds up
    rounded = ((bits + above_half) >> 16).astype(BFLOAT16)
    return np.where(np.isnan(values), NOT_A_NUMBER, rounded)
