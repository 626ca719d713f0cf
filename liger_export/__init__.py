"""Linearized language models, from checkpoint to device.

This module exports the runtime (``load``, ``Session``, ``Sampling``) and does not load PyTorch or transformers.
The exporter is in the submodules and needs the ``export`` extra.
"""

from liger_export.errors import LigerExportError
from liger_export.extras import required_extra
from liger_export.runtime import Sampling, SavedState, Session, load

__all__ = ["LigerExportError", "Sampling", "SavedState", "Session", "load", "register"]


def register() -> None:
    """Register the Liger model types with transformers' ``AutoConfig`` and ``AutoModelForCausalLM``.

    Raises:
        EnvironmentMismatchError: the ``export`` extra is not installed.
    """
    with required_extra("export", "register()"):
        from liger_export.modeling import register as register_models

    register_models()
