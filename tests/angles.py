"""Rotary angles in exact arithmetic, without anything that the project computes them with."""

from collections.abc import Iterable
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["FAR_POSITIONS", "exact_angles"]

PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")

# Float32 holds no odd number above 2**24, int32 and uint32 end at 2**31 - 1 and 2**32 - 1.
FAR_POSITIONS = (
    *(0, 1, 1000, 201_000, 2**24 + 1, 1_000_000_000, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1),
    *(10**12 + 1, 2**53 + 1, 2**62 - 1),
)


def exact_angles(positions: Iterable[int], frequencies: Iterable[float]) -> Tensor:
    """Position times frequency modulo 2 pi, float64 [T, D / 2]; a frequency is the value of its float."""
    exact = [Fraction(float(frequency)) for frequency in frequencies]
    return torch.tensor(
        [[float(position * each % (2 * PI)) for each in exact] for position in positions], dtype=torch.float64
    )
