"""The operators of the ``liger`` domain, and their ONNX schemas for the tracer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx.defs import OpSchema

from liger_export.ops.signatures import HEAD_SIZES, SIGNATURES, AttentionSignature

__all__ = ["DOMAIN", "OPERATORS", "OPSET", "SCHEMAS", "Kind", "Operator"]

DOMAIN = "liger"
OPSET = 1

Kind = OpSchema.AttrType


@dataclass(frozen=True)
class Operator:
    """An operator of the ``liger`` domain: names of its inputs and outputs, and its attributes with their types."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Kind]


def _attention(signature: AttentionSignature) -> Operator:
    attributes = dict.fromkeys((*HEAD_SIZES, *signature.sizes), Kind.INT) | dict.fromkeys(signature.options, Kind.FLOAT)
    return Operator(signature.onnx_name, signature.inputs, signature.outputs, attributes)


LAST_POSITIONS = Operator("LastPositions", ("hidden_states", "count"), ("kept",), {})
ROTARY_ANGLES = Operator("RotaryAngles", ("position_ids", "turns"), ("cos", "sin"), {})
OPERATORS = {each.name: each for each in (*map(_attention, SIGNATURES.values()), LAST_POSITIONS, ROTARY_ANGLES)}


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
