"""Bodies of the ``liger`` operators in operators that an unmodified ONNX Runtime ships, one module a mixer."""

from liger_export.ops.forms import FORMS, HEAD_SIZES, Form
from liger_export.ops.onnx_bodies.gla import GLA
from liger_export.ops.onnx_bodies.gsa import GSA
from liger_export.ops.onnx_bodies.hgrn2 import HGRN2
from liger_export.ops.onnx_bodies.lolcats import LOLCATS
from liger_export.ops.onnx_bodies.parts import Kind, Operator
from liger_export.ops.onnx_bodies.softmax import SOFTMAX

__all__ = ["OPERATORS", "Operator"]

BODIES = {"gla": GLA, "hgrn2": HGRN2, "gsa": GSA, "lolcats": LOLCATS, "softmax": SOFTMAX}


def _attention(form: Form) -> Operator:
    attributes = dict.fromkeys((*HEAD_SIZES, *form.sizes), Kind.INT) | dict.fromkeys(form.options, Kind.FLOAT)
    return Operator(form.onnx_name, form.inputs, form.outputs, attributes, BODIES[form.mixer])


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

OPERATORS = {each.name: each for each in (*map(_attention, FORMS.values()), LAST_POSITIONS)}
