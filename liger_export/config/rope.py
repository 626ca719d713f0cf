"""Rotary position embedding: the supported types and their frequencies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from liger_export.config.fields import RESTORE, Fields
from liger_export.errors import CheckpointError, UnsupportedModelError

__all__ = ["TURN", "RopeConfig", "inverse_frequencies", "read_rope", "rotary_turns"]

TURN = 1 << 52  # a full turn, in the units of ``rotary_turns``
BYTES = 8  # of a position
# 1 / (2 pi) = INVERSE_TWO_PI / 2**258, to 2**-258
INVERSE_TWO_PI = 0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Parameters of rotary position embedding.

    ``rope_type`` is ``default``, ``linear`` (uses ``factor``) or ``llama3`` (uses ``factor`` and the fields after it).
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def read_rope(values: Mapping[str, Any]) -> RopeConfig:
    """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` with ``rope_scaling`` (transformers 4).

    Raises:
        UnsupportedModelError: the rope type is not supported, or only part of each head is rotated.
        CheckpointError: a value is missing or invalid.
    """
    spellings = [values[name] for name in ("rope_parameters", "rope_scaling") if values.get(name)]
    scaling = spellings[0] if spellings else {}
    if len(spellings) == 2 and spellings[0] != spellings[1]:
        raise CheckpointError("config.json has both rope_parameters and rope_scaling.", "Remove the wrong one.")
    if not isinstance(scaling, dict):
        raise CheckpointError(f"config.json has {scaling!r} as rope parameters.", RESTORE)
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    part = scaling.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise UnsupportedModelError(
            f"partial_rotary_factor is {part}.", "Partial rotation is not supported: use another model."
        )
    fields = Fields({"rope_theta": values.get("rope_theta"), **scaling})
    theta = fields.number("rope_theta", 10000.0)
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type == "linear":
        return RopeConfig(theta, "linear", fields.number("factor"))
    if rope_type != "llama3":
        raise UnsupportedModelError(
            f"The rope type {rope_type!r} is not supported.",
            "Supported types are 'default', 'linear' and 'llama3' (Llama 3.1 and later). Use a checkpoint without "
            "context extension.",
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if name not in scaling]
    if missing:
        raise CheckpointError(f"The llama3 rope scaling in config.json lacks {', '.join(missing)}.", RESTORE)
    factor, low, high = (fields.number(name) for name in names[:3])
    if low >= high:
        raise CheckpointError(f"low_freq_factor ({low}) is not less than high_freq_factor ({high}).", RESTORE)
    return RopeConfig(theta, "llama3", factor, low, high, fields.integer(names[3]))


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> npt.NDArray[np.float32]:
    """Inverse frequencies of rotary embedding, float32 [D / 2] (arXiv 2104.09864, equation 15).

    ``linear`` divides all of them by ``factor`` (arXiv 2306.15595, equation 4). ``llama3`` divides only those of long
    wavelengths, keeps those of short wavelengths and interpolates in between, as published with Llama 3.1.
    """
    frequencies = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.rope_type == "linear":
        frequencies /= rope.factor
    elif rope.rope_type == "llama3":
        wavelengths = 2 * math.pi / frequencies
        rotations = rope.original_max_position_embeddings / wavelengths
        blend = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)  # 0: long wavelength, fully scaled; 1: short wavelength, kept
        frequencies = (1 - blend) * frequencies / rope.factor + blend * frequencies
    return frequencies.astype(np.float32)


def rotary_turns(rope: RopeConfig, head_dim: int) -> npt.NDArray[np.int64]:
    """Rotation by each byte of a position, int64 [8, D / 2], of which ``TURN`` is a full turn.

    Row i holds the rotation by 256**i tokens, without full turns. The rotation by a position is the sum of its bytes
    times their rows, without full turns. The sum fits in int64, and its rounding error is less than 2**-42 turns at any
    position. Positions in float32 lose whole turns: from 2**24 on, they are not even integers.
    """
    rows = []
    for place in range(BYTES):
        row = []
        for frequency in inverse_frequencies(rope, head_dim):
            numerator, denominator = float(frequency).as_integer_ratio()  # the float32 frequency, exactly
            numerator *= 256**place * INVERSE_TWO_PI * TURN
            denominator <<= 258
            row.append((numerator + denominator // 2) // denominator % TURN)
        rows.append(row)
    return np.array(rows, dtype=np.int64)
