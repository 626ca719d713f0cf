"""The operators of Liger attention in PyTorch: their signatures, naive references and fast implementations."""

from liger_export.ops.attention import ATTENTIONS, AttentionOp
from liger_export.ops.documents import document_starts, tokens_of_last_document
from liger_export.ops.mixers import initial_parameters
from liger_export.ops.naive import NAIVE_ATTENTIONS, naive_gla_recurrence, naive_rotary, naive_window_attention
from liger_export.ops.recurrence import gated_recurrence
from liger_export.ops.rotary import cos_and_sin, rotary_angles
from liger_export.ops.signatures import SIGNATURES, AttentionSignature
from liger_export.ops.window import rotate, window_attention

__all__ = [
    "ATTENTIONS",
    "NAIVE_ATTENTIONS",
    "SIGNATURES",
    "AttentionOp",
    "AttentionSignature",
    "cos_and_sin",
    "document_starts",
    "gated_recurrence",
    "initial_parameters",
    "naive_gla_recurrence",
    "naive_rotary",
    "naive_window_attention",
    "rotary_angles",
    "rotate",
    "tokens_of_last_document",
    "window_attention",
]
