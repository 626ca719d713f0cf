"""The state table: every tensor a session carries from one call to the next, from the config alone.

It is the single source for the model, the ONNX graph, the runtimes and the memory certificate. Position, a
count of tokens seen, is the only other memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from liger_export.config import SOFTMAX, LigerConfig

__all__ = ["WINDOW_STATES", "StateTensor", "bytes_per_session", "state_table"]

WINDOW_STATES = ("key", "value")

ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One state tensor of one layer.

    Attributes:
        layer: index of the decoder layer.
        name: ``key`` and ``value`` for the window; any other name is recurrent state.
        shape: without the leading batch dimension.
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
        """Name of the graph output that gives this tensor's next value."""
        return f"present.{self.layer}.{self.name}"

    @property
    def nbytes(self) -> int:
        """Bytes of one sequence."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]


Shapes = dict[str, tuple[int, ...]]


def _matrix_state(config: LigerConfig) -> Shapes:
    # [G, D (key), D (value)]: one per key/value head, shared by the query heads that read it.
    return {"recurrent_state": (config.num_key_value_heads, config.head_dim, config.head_dim)}


def _slot_state(config: LigerConfig) -> Shapes:
    slots = (config.num_key_value_heads, config.num_slots, config.head_dim)  # [G, M, D]
    return {"slot_key": slots, "slot_value": slots}


def _feature_state(config: LigerConfig) -> Shapes:
    # Per query head, because each head has feature maps of its own.
    features = (config.num_attention_heads, 2 * config.feature_dim)  # [H, F]
    return {"recurrent_state": (*features, config.head_dim), "normalizer": features}


RECURRENT_STATES: dict[str, Callable[[LigerConfig], Shapes]] = {
    "gla": _matrix_state,
    "hgrn2": _matrix_state,
    "gsa": _slot_state,
    "lolcats": _feature_state,
    SOFTMAX: lambda _: {},
}


def state_table(config: LigerConfig, activation_dtype: str = "float32") -> tuple[StateTensor, ...]:
    """List every state tensor, layer by layer: the recurrent state, then the window's key and value.

    Window rows are ordered oldest first; rows past the sequence's length are zero. Keys are stored rotated. A layer
    that keeps softmax attention has a window of its own size, and nothing else.

    Args:
        config: the model.
        activation_dtype: dtype of the window, one of ``float32``, ``float16`` and ``bfloat16``.
    """
    table = []
    for layer in range(config.num_hidden_layers):
        recurrent = RECURRENT_STATES[config.layer_mixer(layer)](config)
        window = (config.num_key_value_heads, config.layer_window(layer), config.head_dim)  # [G, W, D]
        table += [StateTensor(layer, name, shape, "float32") for name, shape in recurrent.items()]
        table += [StateTensor(layer, name, window, activation_dtype) for name in WINDOW_STATES]
    return tuple(table)


def bytes_per_session(table: tuple[StateTensor, ...]) -> int:
    """Bytes of state one sequence holds, however many tokens it has seen."""
    return sum(tensor.nbytes for tensor in table)
