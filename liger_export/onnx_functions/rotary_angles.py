"""Cosines and sines of rotary angles in ai.onnx operators, for every lowering. Reference: ``ops.rotary``."""

import math

from onnx import FunctionProto, parser

from liger_export.config import TURN
from liger_export.onnx_functions.schemas import OPERATORS

__all__ = ["ROTARY_ANGLES", "rotary_angles_function"]

ROTARY_ANGLES = "RotaryAngles"

# Positions [B, T] become bytes [B, T, 8, 1], which multiply the rows of ``turns`` [8, D / 2].
BODY = f"""
    last_axes = Constant <value = int64[2] {{2, 3}}> ()
    position = Unsqueeze (position_ids, last_axes)
    places = Constant <value = int64[8, 1] {{{", ".join(str(256**place) for place in range(8))}}}> ()
    from_place = Div (position, places)
    base = Constant <value = int64 {{256}}> ()
    bytes = Mod (from_place, base)
    products = Mul (bytes, turns)
    byte_axis = Constant <value = int64[1] {{2}}> ()
    rotations = ReduceSum <keepdims = 0> (products, byte_axis)
    turn = Constant <value = int64 {{{TURN}}}> ()
    half_turn = Constant <value = int64 {{{TURN // 2}}}> ()
    half_turn_more = Add (rotations, half_turn)
    within_turn = Mod (half_turn_more, turn)
    centred = Sub (within_turn, half_turn)
    number = Cast <to = 1> (centred)
    radians = Constant <value = float {{{2 * math.pi / TURN!r}}}> ()
    angles = Mul (number, radians)
    cos = Cos (angles)
    sin = Sin (angles)
"""


def rotary_angles_function() -> FunctionProto:
    """The body of ``liger::RotaryAngles`` as a model-local function."""
    operator = OPERATORS[ROTARY_ANGLES]
    inputs, outputs = ", ".join(operator.inputs), ", ".join(operator.outputs)
    return parser.parse_function(
        f'<domain: "liger", opset_import: ["" : 23]>\n{ROTARY_ANGLES} ({inputs}) => ({outputs})\n{{{BODY}}}\n'
    )
