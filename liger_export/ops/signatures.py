"""The signature of each mixer's attention operator, derived from its row in ``config.MIXERS``.

PyTorch operators, ONNX schemas and engine plugins are built from these signatures. Imports no torch.
"""

from dataclasses import dataclass

from liger_export.config import LAYER_MIXERS
from liger_export.state import WINDOW_STATES

__all__ = ["CALL_INPUTS", "HEAD_SIZES", "SIGNATURES", "SIGNATURES_BY_OPERATOR", "AttentionSignature"]

CALL_INPUTS = ("query", "key", "value", "cos", "sin", "position_ids")
HEAD_SIZES = ("num_heads", "num_key_value_heads", "head_dim", "window_size")


@dataclass(frozen=True, slots=True)
class AttentionSignature:
    """One mixer's attention as an operator.

    Inputs, in order:

    - query [B, T, H * D], key and value [B, T, G * D], as projected, after biases and q/k norms;
    - cos and sin [B, T, D / 2] of the rotary angles, float32 (float64 if the other inputs are float64);
    - position_ids, int64 [B, T], consecutive within a document; -1 marks padding, which is allowed only at the end of a
      row and does not affect the state. In PyTorch, a 0 after the first column begins another document
      (``ops.documents``); the ONNX operators take one document in a row;
    - the layer's state tensors in the order of the state table: the recurrent ones, in float32, then window_key and
      window_value [B, G, W, D], oldest first;
    - the mixer's learned tensors.

    Outputs: the attention output [B, T, H * D] and the next state tensors.

    Attributes:
        mixer: key of ``config.LAYER_MIXERS``.
        onnx_name: name of the ONNX operator in a traced graph.
        recurrent_states: names of the recurrent state tensors.
        parameters: names of the learned tensors.
        options: ``LigerConfig`` fields passed as floats, after the tensors.
        sizes: ``LigerConfig`` fields that the ONNX node has as integer attributes, after ``HEAD_SIZES``; PyTorch reads
            them from the shapes.
    """

    mixer: str
    onnx_name: str
    recurrent_states: tuple[str, ...]
    parameters: tuple[str, ...]
    options: tuple[str, ...]
    sizes: tuple[str, ...]

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the state tensors."""
        return (*self.recurrent_states, *(f"window_{name}" for name in WINDOW_STATES))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all input tensors."""
        return (*CALL_INPUTS, *self.states, *self.parameters)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all output tensors."""
        return ("output", *(f"next_{name}" for name in self.states))


SIGNATURES = {
    name: AttentionSignature(
        name, f"{row.title}Attention", tuple(row.states), tuple(row.parameters), row.options, row.sizes
    )
    for name, row in LAYER_MIXERS.items()
}
SIGNATURES_BY_OPERATOR = {signature.onnx_name: signature for signature in SIGNATURES.values()}
