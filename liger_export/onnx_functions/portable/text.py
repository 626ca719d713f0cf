"""Writing portable bodies down: the sizes that are fixed in them, and the lines that need a constant beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FLOAT", "SUB_CHUNK", "Sizes", "cast", "matrix", "number", "numbers", "reshape", "transpose"]

FLOAT = 1  # onnx.TensorProto.FLOAT
SUB_CHUNK = 16  # tokens whose decays are summed pair by pair


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one portable body is written for. Batches are of one sequence.

    Attributes:
        length: T, 1 or a multiple of ``SUB_CHUNK``.
        heads: H.
        groups: G.
        head_dim: D.
        window: W.
        activation: ``onnx.TensorProto`` number of the activations' dtype.
        slots: M of gsa, otherwise 0.
        map_dim: outputs of one of lolcats' maps, otherwise 0.
        gate_normalizer: divisor of the log gate.
        recurrent_weight: share of the recurrence in the output.
    """

    length: int
    heads: int
    groups: int
    head_dim: int
    window: int
    activation: int
    slots: int = 0
    map_dim: int = 0
    gate_normalizer: float = 1.0
    recurrent_weight: float = 0.5

    @property
    def repeats(self) -> int:
        """Query heads for each key/value head."""
        return self.heads // self.groups

    @property
    def sub_chunks(self) -> int:
        """N, sub-chunks in a call of many tokens."""
        return self.length // SUB_CHUNK


def reshape(name: str, source: str, *dims: int) -> str:
    """A Reshape to fixed sizes."""
    return f"""
    {numbers(f"{name}_shape", dims)}
    {name} = Reshape ({source}, {name}_shape)"""


def transpose(name: str, source: str, *order: int) -> str:
    """A Transpose."""
    return f"""
    {name} = Transpose <perm = [{", ".join(map(str, order))}]> ({source})"""


def cast(name: str, source: str, to: int) -> str:
    """A Cast to a ``onnx.TensorProto`` number."""
    return f"""
    {name} = Cast <to = {to}> ({source})"""


def number(name: str, value: float) -> str:
    """A float32 scalar."""
    return f"{name} = Constant <value = float {{{np.float32(value)!s}}}> ()"


def numbers(name: str, values: Sequence[int]) -> str:
    """An int64 vector."""
    return f"{name} = Constant <value = int64[{len(values)}] {{{', '.join(map(str, values))}}}> ()"


def matrix(name: str, values: npt.NDArray[np.bool_]) -> str:
    """A float32 tensor of zeros and ones."""
    shape = ", ".join(map(str, values.shape))
    return f"{name} = Constant <value = float[{shape}] {{{', '.join('1.0' if v else '0.0' for v in values.flat)}}}> ()"
