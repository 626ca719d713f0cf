"""The state table: every tensor that a session carries from one call to the next, derived from the config.

The model, the ONNX graph, the runtimes and the memory certificate all use this table. The only other memory is the
position, a count of the tokens read so far.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import TypeVar

from liger_export.config import LAYER_MIXERS, LigerConfig

__all__ = ["MAX_POSITION", "WINDOW_STATES", "StateTensor", "by_layer", "bytes_per_session", "state_table"]

MAX_POSITION = 1 << 62  # positions are int64, and tokens are added to them
WINDOW_STATES = ("key", "value")

T = TypeVar("T")

ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One state tensor of one layer.

    Attributes:
        layer: index of the decoder layer.
        name: ``key`` or ``value`` for the window; any other name is a recurrent state.
        shape: shape without the leading batch dimension.
        dtype: ``float32`` for recurrent state, the activation dtype for the window.
    """

    layer: int
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def past_name(self) -> str:
        """Name of the graph input that takes this tensor."""
        return f"past_key_values.{self.layer}.{self.name}"

    @property
    def present_name(self) -> str:
        """Name of the graph output that holds this tensor's next value."""
        return f"present.{self.layer}.{self.name}"

    @property
    def nbytes(self) -> int:
        """Size in bytes for one sequence."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]


def state_table(config: LigerConfig, activation_dtype: str = "float32") -> tuple[StateTensor, ...]:
    """List every state tensor layer by layer: the recurrent states, then the window's key and value.

    The oldest row of a window comes first; rows past the sequence's length are zero. Keys are stored rotated. A layer
    that keeps softmax attention has only a window, of ``softmax_window`` rows.

    Args:
        config: the model.
        activation_dtype: dtype of the window: ``float32``, ``float16`` or ``bfloat16``.
    """
    table = []
    for layer in range(config.num_hidden_layers):
        recurrent = LAYER_MIXERS[config.layer_mixer(layer)].state_shapes(config)
        window = (config.num_key_value_heads, config.layer_window(layer), config.head_dim)  # [G, W, D]
        table += [StateTensor(layer, name, shape, "float32") for name, shape in recurrent.items()]
        table += [StateTensor(layer, name, window, activation_dtype) for name in WINDOW_STATES]
    return tuple(table)


def by_layer(table: Sequence[StateTensor], tensors: Iterable[T]) -> list[tuple[T, ...]]:
    """Group tensors by layer. They must be in the order of the table.

    Raises:
        ValueError: the number of tensors differs from the number of rows.
    """
    rows = groupby(zip(table, tensors, strict=True), key=lambda row: row[0].layer)
    return [tuple(tensor for _, tensor in layer) for _, layer in rows]


def bytes_per_session(table: tuple[StateTensor, ...]) -> int:
    """Bytes of state per sequence, independent of its length."""
    return sum(tensor.nbytes for tensor in table)
