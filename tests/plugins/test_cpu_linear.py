"""``liger::IntegerLinear`` on a CPU: what it refuses, and its result beside ONNX Runtime's MatMulNBits."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from tests.plugins.sessions import needs_library, session

pytestmark = needs_library

ROWS, BLOCKS = 70, 5


def feed_of(tokens: int, bits: int = 4, block_size: int = 32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    columns = BLOCKS * block_size
    return {
        "hidden": random.standard_normal((1, tokens, columns)).astype(np.float32),
        "weight": random.integers(0, 256, (ROWS, BLOCKS, block_size * bits // 8), np.uint8),
        "scales": random.uniform(0.01, 0.02, (ROWS, BLOCKS)).astype(np.float32),
        "zero_points": random.integers(0, 256, (ROWS, (BLOCKS * bits + 7) // 8), np.uint8),
        "bias": random.standard_normal(ROWS).astype(np.float32),
    }


def run(name: str, domain: str, feed: dict[str, np.ndarray], names: list[str], **attributes: object) -> np.ndarray:
    """Run an operator; an empty name leaves an input out. All but the first are constants, as in a package."""
    node = helper.make_node(name, names, ["result"], domain=domain, **attributes)
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, feed["hidden"].shape)
    constants = [numpy_helper.from_array(array, key) for key, array in feed.items() if key != "hidden"]
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], name, [hidden], [result], constants)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    found: np.ndarray = session(model.SerializeToString()).run(None, {"hidden": feed["hidden"]})[0]
    return found


def linear(feed: dict[str, np.ndarray], **changes: object) -> np.ndarray:
    attributes = {"bits": 4, "block_size": 32, "gated": 0, "epsilon": 1e-5} | changes
    options = [name if name in feed else "" for name in ("norm", "bias", "residual")]
    return run("IntegerLinear", DOMAIN, feed, ["hidden", "weight", "scales", "zero_points", *options], **attributes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 17, 40])
def test_product_equals_that_of_onnx_runtime(tokens: int, block_size: int, bits: int) -> None:
    feed = feed_of(tokens, bits, block_size)
    sizes = {"K": BLOCKS * block_size, "N": ROWS, "bits": bits, "block_size": block_size, "accuracy_level": 4}
    expected = run("MatMulNBits", "com.microsoft", feed, [*list(feed)[:4], "", "bias"], **sizes)
    found = linear(feed, bits=bits, block_size=block_size)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_make_their_token_not_finite(number: float, tokens: int) -> None:
    feed = feed_of(tokens)
    feed["hidden"][0, -1, 37] = number
    found = linear(feed)
    assert not np.isfinite(found[0, -1]).any()
    assert np.isfinite(found[0, :-1]).all()


def test_no_tokens_give_no_results() -> None:
    assert linear(feed_of(0)).shape == (1, 0, ROWS)


def test_wrong_attributes_and_shapes_are_refused_with_what_is_wanted() -> None:
    with pytest.raises(RuntimeException, match="blocks of 32, 64 or 128"):
        linear(feed_of(1), block_size=96)
    with pytest.raises(RuntimeException, match="needs 4 or 8 bits"):
        linear(feed_of(1), bits=2)
    with pytest.raises(Fail, match=r"scales must have shape \[70, 5\], not \[70, 4\]"):
        linear(feed_of(1) | {"scales": np.zeros((ROWS, 4), np.float32)})
    with pytest.raises(Fail, match="gated layer does not support a residual"):
        linear(feed_of(1) | {"residual": np.zeros((1, 1, ROWS // 2), np.float32)}, gated=1)


def test_float16_weights_need_a_multiple_of_16_columns() -> None:
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT16, [1, 1, 24])
    weight = numpy_helper.from_array(np.zeros((3, 24), np.float16), "weight")
    node = helper.make_node("Linear", ["hidden", "weight"], ["result"], domain=DOMAIN, gated=0, epsilon=1e-5)
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT16, None)
    graph = helper.make_graph([node], "linear", [hidden], [result], [weight])
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    with pytest.raises(Fail, match="Linear needs a multiple of 16 columns on a CPU"):
        session(model.SerializeToString()).run(None, {"hidden": np.zeros((1, 1, 24), np.float16)})
