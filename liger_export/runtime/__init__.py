"""Run packages with numpy, onnxruntime, tokenizers and packaging alone."""

from liger_export.runtime.buffers import SavedState
from liger_export.runtime.opening import load, read_tokenizer
from liger_export.runtime.sampling import Sampling
from liger_export.runtime.session import Session

__all__ = ["Sampling", "SavedState", "Session", "load", "read_tokenizer"]
