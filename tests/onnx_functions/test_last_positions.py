"""The stock body of ``liger::LastPositions`` on ONNX Runtime."""

from functools import cache

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from liger_export.onnx_functions.stock import stock_function

ROWS = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)


@cache
def session() -> onnxruntime.InferenceSession:
    node = helper.make_node("LastPositions", ["rows", "count"], ["kept"], domain=DOMAIN)
    inputs = [
        helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["B", "T", 3]),
        helper.make_tensor_value_info("count", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["B", "K", 3])]
    graph = helper.make_graph([node], "last", inputs, outputs)
    imports = [helper.make_opsetid(name, v) for name, v in (("", 23), (DOMAIN, OPSET))]
    functions = [stock_function("LastPositions")]
    model = helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("count", range(6))
def test_the_last_positions_of_each_sequence_and_all_for_0(count: int) -> None:
    (found,) = session().run(None, {"rows": ROWS, "count": np.array(count)})
    np.testing.assert_array_equal(found, ROWS[:, -count:])


@pytest.mark.parametrize("count", [-1, -5, -(2**63), 6, 2**63 - 1])
def test_a_count_below_0_or_above_the_tokens_read_is_refused(count: int) -> None:
    with pytest.raises((Fail, RuntimeException), match="logits_to_keep_is_from_0_to_the_tokens_read"):
        session().run(None, {"rows": ROWS, "count": np.array(count)})


@pytest.mark.parametrize("shape", [(0,), (2,)])
def test_anything_but_one_number_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises((Fail, RuntimeException), match="logits_to_keep_is_one_number"):
        session().run(None, {"rows": ROWS, "count": np.ones(shape, np.int64)})
