"""Linearized language models, from checkpoint to device.

The runtime is here at hand (``load``, ``Session``, ``Sampling``); importing it loads neither torch nor
transformers. The rest is in the submodules and needs the ``export`` extra.
"""

from liger_export.errors import LigerExportError
from liger_export.runtime import Sampling, SavedState, Session, load

__all__ = ["LigerExportError", "Sampling", "SavedState", "Session", "load", "register"]


def register() -> None:
    """Make transformers' ``AutoConfig`` and ``AutoModelForCausalLM`` know the Liger model types."""
    from liger_export.modeling import register as register_models

    register_models()
