"""Run packages. Needs only numpy, onnxruntime, tokenizers and packaging."""

from liger_export.runtime.opening import load, read_tokenizer
from liger_export.runtime.sampling import Sampling
from liger_export.runtime.saved_state import SavedState
from liger_export.runtime.session import Session

__all__ = ["Sampling", "SavedState", "Session", "load", "read_tokenizer"]
