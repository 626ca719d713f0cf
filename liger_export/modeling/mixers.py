"""Mixers: what turns a layer's query, key and value into its attention output and next state.

A mixer is one function; a new one is one more entry in ``MIXERS`` (and a row in the state table).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from liger_export.config import LigerConfig
from liger_export.ops import gla_attention

__all__ = ["MIXERS", "Positions"]


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the tokens of one forward stand.

    Attributes:
        cos: [B, T, D / 2], cosine of the rotary angles.
        sin: [B, T, D / 2].
        position_ids: int64 [B, T], -1 at padding.
    """

    cos: Tensor
    sin: Tensor
    position_ids: Tensor


Projections = tuple[Tensor, Tensor, Tensor]  # [B, T, H * D], [B, T, G * D], [B, T, G * D]
State = tuple[Tensor, ...]  # in the order of the state table
Mixer = Callable[[Projections, Positions, State, LigerConfig], tuple[Tensor, State]]


def _gla(projections: Projections, positions: Positions, state: State, config: LigerConfig) -> tuple[Tensor, State]:
    recurrent_state, window_key, window_value = state
    output, *next_state = gla_attention(
        *projections,
        positions.cos,
        positions.sin,
        positions.position_ids,
        recurrent_state,
        window_key,
        window_value,
        config.gate_normalizer,
    )
    return output, tuple(next_state)


MIXERS: dict[str, Mixer] = {"gla": _gla}
