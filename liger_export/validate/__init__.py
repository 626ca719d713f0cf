"""Validation: the parity of a package with the PyTorch model it was converted from."""

from liger_export.validate.run import ValidationSettings, can_record, validate

__all__ = ["ValidationSettings", "can_record", "validate"]
