"""The ONNX form of each operator: a schema for the traced node, and a body for each lowering.

The traced graph holds one node a layer for Liger attention, for example ``liger::GLAAttention``. A lowering gives
that node a meaning by adding a model-local function of the same name, whose body uses operators that the engine has.
"""

from collections.abc import Sequence

from onnx import FunctionProto, parser
from onnx.defs import OpSchema

from liger_export.onnx_functions.stock import OPERATORS, Operator

__all__ = ["DOMAIN", "OPSET", "SCHEMAS", "stock_function"]

DOMAIN = "liger"
OPSET = 1


def _schema(operator: Operator) -> OpSchema:
    types = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(int64)"]

    def parameters(names: Sequence[str]) -> list[OpSchema.FormalParameter]:
        return [OpSchema.FormalParameter(each, f"T_{each}") for each in names]

    return OpSchema(
        operator.name,
        DOMAIN,
        OPSET,
        inputs=parameters(operator.inputs),
        outputs=parameters(operator.outputs),
        type_constraints=[(f"T_{each}", types, each) for each in (*operator.inputs, *operator.outputs)],
        attributes=[OpSchema.Attribute(each, kind) for each, kind in operator.attributes.items()],
    )


SCHEMAS = {name: _schema(operator) for name, operator in OPERATORS.items()}


def stock_function(name: str) -> FunctionProto:
    """Body of an operator in terms that an unmodified ONNX Runtime ships (ai.onnx and com.microsoft)."""
    return parser.parse_function(OPERATORS[name].text)
