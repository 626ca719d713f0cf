"""Parity of a package with the PyTorch model it came from."""

from liger_export.validate.run import validate

__all__ = ["validate"]
