"""Single ONNX nodes as text: those of portable bodies that need a constant or an attribute."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["FLOAT", "cast", "matrix", "number", "numbers", "reshape", "transpose"]

FLOAT = 1  # onnx.TensorProto.FLOAT


def reshape(name: str, source: str, *dims: int) -> str:
    """Reshape to fixed sizes."""
    return f"""
    {numbers(f"{name}_shape", dims)}
    {name} = Reshape ({source}, {name}_shape)"""


def transpose(name: str, source: str, *order: int) -> str:
    """Transpose the dimensions into ``order``."""
    return f"""
    {name} = Transpose <perm = [{", ".join(map(str, order))}]> ({source})"""


def cast(name: str, source: str, to: int) -> str:
    """Cast to a dtype, given as its number in ``onnx.TensorProto``."""
    return f"""
    {name} = Cast <to = {to}> ({source})"""


def number(name: str, value: float) -> str:
    """Define a float32 scalar."""
    return f"{name} = Constant <value = float {{{np.float32(value)!s}}}> ()"


def numbers(name: str, values: Sequence[int]) -> str:
    """Define an int64 vector."""
    return f"{name} = Constant <value = int64[{len(values)}] {{{', '.join(map(str, values))}}}> ()"


def matrix(name: str, values: npt.NDArray[np.bool_]) -> str:
    """Define a float32 tensor of zeros and ones."""
    shape = ", ".join(map(str, values.shape))
    return f"{name} = Constant <value = float[{shape}] {{{', '.join('1.0' if v else '0.0' for v in values.flat)}}}> ()"
