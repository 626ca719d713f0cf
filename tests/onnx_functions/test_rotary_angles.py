"""``liger::RotaryAngles``, its body and its C++ operator, in ONNX Runtime against exact arithmetic."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper

from liger_export.config import RopeConfig, inverse_frequencies, rotary_turns
from liger_export.onnx_functions.rotary_angles import rotary_angles_function
from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from tests.angles import FAR_POSITIONS, exact_angles
from tests.plugins.sessions import needs_library, options_with_library

TURNS = rotary_turns(RopeConfig(), 64)


def model_of(*functions: object) -> ModelProto:
    node = helper.make_node("RotaryAngles", ["position_ids", "turns"], ["cos", "sin"], domain=DOMAIN)
    graph = helper.make_graph(
        [node],
        "angles",
        [
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["B", "T"]),
            helper.make_tensor_value_info("turns", TensorProto.INT64, ["places", "half"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("cos", "sin")],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET)]
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=10)


def angles(form: str, positions: list[list[int]], turns: np.ndarray = TURNS) -> list[np.ndarray]:
    is_body = form == "body"
    model, options = (model_of(rotary_angles_function()), None) if is_body else (model_of(), options_with_library())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"position_ids": np.array(positions), "turns": turns}))


every_form = pytest.mark.parametrize("form", ["body", pytest.param("operator", marks=needs_library)])


@every_form
def test_angles_are_exact_at_any_position(form: str) -> None:
    half = len(FAR_POSITIONS) // 2
    cos, sin = angles(form, [list(FAR_POSITIONS[:half]), list(FAR_POSITIONS[-half:])])
    expected = exact_angles((*FAR_POSITIONS[:half], *FAR_POSITIONS[-half:]), inverse_frequencies(RopeConfig(), 64))
    assert cos.shape == sin.shape == (2, half, 32)
    assert float((torch.from_numpy(cos).flatten(0, 1) - expected.cos()).abs().max()) < 4e-7
    assert float((torch.from_numpy(sin).flatten(0, 1) - expected.sin()).abs().max()) < 4e-7


@every_form
def test_padding_gets_finite_values(form: str) -> None:
    assert all(np.isfinite(array).all() for array in angles(form, [[5, -1]]))


@needs_library
def test_the_operator_refuses_another_table() -> None:
    with pytest.raises(Exception, match=r"turns must have shape \[8, D / 2\]"):
        angles("operator", [[0]], TURNS[:7])
