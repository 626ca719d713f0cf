"""Run packages with numpy, onnxruntime and tokenizers alone."""

from liger_export.runtime.sampling import Sampling
from liger_export.runtime.session import SavedState, Session, load, read_tokenizer

__all__ = ["Sampling", "SavedState", "Session", "load", "read_tokenizer"]
