"""Function bodies in operators of an unmodified ONNX Runtime (ai.onnx and com.microsoft); a module per mixer."""

from onnx import FunctionProto, parser

from liger_export.onnx_functions.rotary_angles import ROTARY_ANGLES, rotary_angles_function
from liger_export.onnx_functions.schemas import OPERATORS, Operator
from liger_export.onnx_functions.stock.gla import GLA_BODY
from liger_export.onnx_functions.stock.gsa import GSA_BODY
from liger_export.onnx_functions.stock.hgrn2 import HGRN2_BODY
from liger_export.onnx_functions.stock.last_positions import LAST_POSITIONS_BODY
from liger_export.onnx_functions.stock.lolcats import LOLCATS_BODY
from liger_export.onnx_functions.stock.softmax import SOFTMAX_BODY
from liger_export.ops.signatures import SIGNATURES

__all__ = ["STOCK_BODIES", "parse_body", "stock_function"]

STOCK_BODIES = {
    "gla": GLA_BODY,
    "hgrn2": HGRN2_BODY,
    "gsa": GSA_BODY,
    "lolcats": LOLCATS_BODY,
    "softmax": SOFTMAX_BODY,
}
BY_OPERATOR = {SIGNATURES[mixer].onnx_name: body for mixer, body in STOCK_BODIES.items()} | {
    "LastPositions": LAST_POSITIONS_BODY
}


def stock_function(name: str) -> FunctionProto:
    """The body of an operator, named as in ``schemas.OPERATORS``, as a model-local function."""
    if name == ROTARY_ANGLES:
        return rotary_angles_function()
    return parse_body(OPERATORS[name], BY_OPERATOR[name])


def parse_body(operator: Operator, body: str) -> FunctionProto:
    """Parse the nodes of a body, in ONNX's text format, into a function of the operator's name, inputs and outputs."""
    attributes = f"<{', '.join(operator.attributes)}>" if operator.attributes else ""
    return parser.parse_function(
        '<domain: "liger", opset_import: ["" : 23, "com.microsoft" : 1]>\n'
        f"{operator.name} {attributes} ({', '.join(operator.inputs)}) => ({', '.join(operator.outputs)})\n{{{body}}}\n"
    )
