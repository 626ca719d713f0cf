"""What each mixer's operator takes and gives, declared once: the torch operators and the ONNX forms are made from it.

Imports no torch. Names and order of the states are those of the state table.
"""

from dataclasses import dataclass

from liger_export.config import SOFTMAX
from liger_export.state import RECURRENT_STATES, WINDOW_STATES

__all__ = ["CALL_INPUTS", "HEAD_SIZES", "SIGNATURES", "AttentionSignature"]

CALL_INPUTS = ("query", "key", "value", "cos", "sin", "position_ids")
HEAD_SIZES = ("num_heads", "num_key_value_heads", "head_dim", "window_size")


@dataclass(frozen=True, slots=True)
class AttentionSignature:
    """One mixer's attention as an operator.

    Its tensors, in order:

    - query [B, T, H * D], key and value [B, T, G * D], as projected, after biases and q/k norms;
    - cos and sin [B, T, D / 2] of the rotary angles, float32 (float64 with float64 inputs);
    - position_ids, int64 [B, T], consecutive within a row; -1 marks padding, which may only end a row and
      leaves no trace;
    - the layer's state tensors, as the state table lists them: the recurrent ones, in float32, then window_key
      and window_value [B, G, W, D], oldest first;
    - the mixer's learned tensors.

    It returns the output [B, T, H * D] and the next state tensors.

    Attributes:
        mixer: key of ``state.RECURRENT_STATES``.
        onnx_name: the ONNX operator that a traced graph holds for it.
        parameters: names of the learned tensors.
        options: the ``LigerConfig`` fields that it takes as numbers, after the tensors.
        sizes: those that its ONNX form takes as integers, after ``HEAD_SIZES``; torch reads them from the shapes.
    """

    mixer: str
    onnx_name: str
    parameters: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the state tensors."""
        return (*RECURRENT_STATES[self.mixer], *(f"window_{name}" for name in WINDOW_STATES))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all tensors it takes."""
        return (*CALL_INPUTS, *self.states, *self.parameters)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all tensors it returns."""
        return ("output", *(f"next_{name}" for name in self.states))


SIGNATURES = {
    signature.mixer: signature
    for signature in (
        AttentionSignature("gla", "GLAAttention", options=("gate_normalizer", "recurrent_weight")),
        AttentionSignature("hgrn2", "HGRN2Attention", options=("recurrent_weight",)),
        AttentionSignature(
            "gsa", "GSAAttention", options=("gate_normalizer", "recurrent_weight"), sizes=("num_slots",)
        ),
        AttentionSignature("lolcats", "LoLCATsAttention", parameters=("query_map", "key_map", "window_factors")),
        AttentionSignature(SOFTMAX, "SoftmaxAttention"),
    )
}
