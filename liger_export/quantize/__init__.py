"""How a package's weights are stored: which tensor in which precision. Importing it loads no torch.

``liger_export.quantize.blocks`` and its neighbours round weights; they need the exporter's extra.
"""

from liger_export.quantize.scheme import (
    BLOCK_SIZES,
    CALIBRATION_TOKENS,
    FLOATS,
    METHODS,
    PRECISIONS,
    Calibration,
    Precision,
    Scheme,
)

__all__ = [
    "BLOCK_SIZES",
    "CALIBRATION_TOKENS",
    "FLOATS",
    "METHODS",
    "PRECISIONS",
    "Calibration",
    "Precision",
    "Scheme",
]
