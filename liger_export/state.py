"""The state table: every tensor a session carries from one call to the next, from the config alone.

It is the single source for the model, the ONNX graph, the runtimes and the memory certificate. Position, a
count of tokens seen, is the only other memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from liger_export.config import SOFTMAX, LigerConfig

__all__ = ["RECURRENT_STATES", "WINDOW_STATES", "StateTensor", "bytes_per_session", "state_table"]

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


Shape = Callable[[LigerConfig], tuple[int, ...]]


def _matrix(config: LigerConfig) -> tuple[int, ...]:
    # [G, D (key), D (value)]: one per key/value head, shared by the query heads that read it.
    return config.num_key_value_heads, config.head_dim, config.head_dim


def _slots(config: LigerConfig) -> tuple[int, ...]:
    return config.num_key_value_heads, config.num_slots, config.head_dim  # [G, M, D]


def _features(config: LigerConfig) -> tuple[int, ...]:
    # [H, F]: per query head, because each head has feature maps of its own.
    return config.num_attention_heads, 2 * config.feature_dim


def _feature_values(config: LigerConfig) -> tuple[int, ...]:
    return *_features(config), config.head_dim  # [H, F, D]


RECURRENT_STATES: dict[str, dict[str, Shape]] = {
    "gla": {"recurrent_state": _matrix},
    "hgrn2": {"recurrent_state": _matrix},
    "gsa": {"slot_key": _slots, "slot_value": _slots},
    "lolcats": {"recurrent_state": _feature_values, "normalizer": _features},
    SOFTMAX: {},
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
        recurrent = RECURRENT_STATES[config.layer_mixer(layer)]
        window = (config.num_key_value_heads, config.layer_window(layer), config.head_dim)  # [G, W, D]
        table += [StateTensor(layer, name, shape(config), "float32") for name, shape in recurrent.items()]
        table += [StateTensor(layer, name, window, activation_dtype) for name in WINDOW_STATES]
    return tuple(table)


def bytes_per_session(table: tuple[StateTensor, ...]) -> int:
    """Bytes of state one sequence holds, however many tokens it has seen."""
    return sum(tensor.nbytes for tensor in table)
