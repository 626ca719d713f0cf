"""Cosines and sines of rotary angles (RoPE, arXiv 2104.09864), exact at any position.

A position times a frequency is computed in integers, without full turns, from the table of ``config.rotary_turns``.
"""

import math

import torch
from torch import Tensor

from liger_export.config import TURN

__all__ = ["cos_and_sin", "rotary_angles"]


def cos_and_sin(position_ids: Tensor, turns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Map positions to the cosines and sines of their rotary angles.

    Args:
        position_ids: int64 [B, T]. A negative position, which marks padding, gets some finite values.
        turns: int64 [8, D / 2], from ``config.rotary_turns``.
        dtype: of the results, float32 or float64.

    Returns:
        Cosines and sines, [B, T, D / 2] each.
    """
    places = torch.arange(0, 8 * len(turns), 8, device=position_ids.device)
    rows = position_ids[..., None] >> places & 255  # [B, T, 8]
    rotations = (rows[..., None] * turns).sum(-2)
    centred = (rotations + TURN // 2) % TURN - TURN // 2  # near 0, floats are finest
    angles = centred.to(dtype) * (2 * math.pi / TURN)
    return angles.cos(), angles.sin()


@torch.library.custom_op("liger::rotary_angles", mutates_args=())
def rotary_angles(position_ids: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """``cos_and_sin`` in float32, as one node of a traced graph."""
    return cos_and_sin(position_ids, turns, torch.float32)


@rotary_angles.register_fake
def _rotary_angles_fake(position_ids: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*position_ids.shape, turns.shape[1])
    return turns.new_empty(shape, dtype=torch.float32), turns.new_empty(shape, dtype=torch.float32)
