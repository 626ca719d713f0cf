"""Run packages. Needs only numpy, onnxruntime, tokenizers and packaging."""

from liger_export.runtime.generation import GenerationSettings
from liger_export.runtime.opening import load, read_tokenizer
from liger_export.runtime.pieces import Piece, Token
from liger_export.runtime.prefix_states import PrefixStates
from liger_export.runtime.sampling import Sampling
from liger_export.runtime.saved_state import SavedState
from liger_export.runtime.scheduler import Scheduler, Statistics
from liger_export.runtime.session import Session
from liger_export.runtime.streams import Request, Stream

__all__ = [
    "GenerationSettings",
    "Piece",
    "PrefixStates",
    "Request",
    "Sampling",
    "SavedState",
    "Scheduler",
    "Session",
    "Statistics",
    "Stream",
    "Token",
    "load",
    "read_tokenizer",
]
