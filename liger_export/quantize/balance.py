"""Balanced channels: a product's weights grow by the factors by which its inputs shrink, so its results stay the same.

Integers round both sides of a product: the weights here, and the inputs, to 8 bits, in ONNX Runtime. A block of either
has one scale, so its largest channel sets the error of the others. AWQ (arXiv 2306.00978) scales channels for the sake
of the weights, SmoothQuant (arXiv 2211.10438, equation 4) for that of the inputs. Both multiply the weights by a power
of the inputs' magnitude. Its square root serves both.

The inputs shrink where they are made, at no cost: in the weight of the norm before the product, or in the rows of
``up_proj`` before ``down_proj``. Keys and values are not changed, so a session's state remains that of the model.
"""

from torch import Tensor

__all__ = ["channel_factors"]

SMALLEST = 1e-3  # of the mean magnitude: channels below it are treated as if they had it


def channel_factors(squares: Tensor) -> Tensor:
    """Factor of each channel's weights: the square root of the inputs' magnitude, with a geometric mean of 1.

    Args:
        squares: sum of squares of each input channel, [in].
    """
    magnitudes = squares.sqrt()
    mean = magnitudes.mean()
    if mean == 0:  # no channel was ever active
        return magnitudes.new_ones(magnitudes.shape)
    logarithms = magnitudes.clamp(min=float(SMALLEST * mean)).log() / 2
    return (logarithms - logarithms.mean()).exp()
