"""Bodies of the ``liger`` operators in operators that an unmodified ONNX Runtime ships, one module a mixer."""

from liger_export.onnx_functions.stock.gla import GLA
from liger_export.onnx_functions.stock.gsa import GSA
from liger_export.onnx_functions.stock.hgrn2 import HGRN2
from liger_export.onnx_functions.stock.lolcats import LOLCATS
from liger_export.onnx_functions.stock.parts import Kind, Operator
from liger_export.onnx_functions.stock.softmax import SOFTMAX
from liger_export.ops.signatures import HEAD_SIZES, SIGNATURES, AttentionSignature

__all__ = ["OPERATORS", "Operator"]

BODIES = {"gla": GLA, "hgrn2": HGRN2, "gsa": GSA, "lolcats": LOLCATS, "softmax": SOFTMAX}


def _attention(signature: AttentionSignature) -> Operator:
    attributes = dict.fromkeys((*HEAD_SIZES, *signature.sizes), Kind.INT) | dict.fromkeys(signature.options, Kind.FLOAT)
    return Operator(signature.onnx_name, signature.inputs, signature.outputs, attributes, BODIES[signature.mixer])


LAST_POSITIONS = Operator(
    name="LastPositions",
    inputs=("hidden_states", "count"),
    outputs=("kept",),
    attributes={},
    body="""
    one = Constant <value = int64[1] {1}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    negative = Neg (count)
    start = Reshape (negative, one)
    kept = Slice (hidden_states, start, end, one)
""",
)

OPERATORS = {each.name: each for each in (*map(_attention, SIGNATURES.values()), LAST_POSITIONS)}
