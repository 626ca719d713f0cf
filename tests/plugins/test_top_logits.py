"""``liger::Candidates`` in ONNX Runtime on a CPU, against a sort and a sum."""

from functools import cache

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from tests.plugins.sessions import needs_library, options_with_library
from tests.top_logits import Logits, assert_top_logits, tied_logits

pytestmark = needs_library


@cache
def session() -> onnxruntime.InferenceSession:
    """Create a session for a graph of this one operator."""
    graph = helper.make_graph(
        [helper.make_node("Candidates", ["logits", "temperature"], ["candidates"], domain=DOMAIN)],
        "candidates",
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("temperature", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("candidates", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options_with_library(), providers=["CPUExecutionProvider"])


def top_logits_of(logits: Logits, temperature: float) -> Logits:
    feed = {"logits": logits, "temperature": np.array(temperature, dtype=np.float32)}
    found: Logits = session().run(None, feed)[0]
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40000), st.integers(0, 2**32 - 1), st.floats(0.01, 40), st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
def test_the_largest_logits_and_the_sum_of_all(width: int, seed: int, scale: float, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, (2, 2, width)).astype(np.float32)
    assert_top_logits(top_logits_of(logits, temperature), logits, float(np.float32(temperature)))


@pytest.mark.parametrize("distinct", [1, 2, 40])
def test_equal_logits_are_sorted_by_token(distinct: int) -> None:
    logits = tied_logits(distinct, (2, 1, 50000), distinct)
    assert_top_logits(top_logits_of(logits, 1.0), logits, 1.0)


def test_ascending_and_infinite_logits() -> None:
    logits = (np.arange(40000, dtype=np.float32) / 64)[None, None]
    assert_top_logits(top_logits_of(logits, 1.0), logits, 1.0)
    logits[..., 100:39000] = -np.inf
    assert_top_logits(top_logits_of(logits, 1.0), logits, 1.0)


@pytest.mark.parametrize("at", [0, 300, 39500])
@pytest.mark.parametrize("value", [np.nan, -np.float32(np.nan), np.inf])
def test_a_logit_that_is_not_finite_sorts_first(value: float, at: int) -> None:
    logits = np.random.default_rng(at).normal(0, 3, (1, 1, 40000)).astype(np.float32)
    logits[..., at] = value
    logits[..., 100] = np.inf
    found = top_logits_of(logits, 1.0)[0, 1]
    assert np.isnan(found) if np.isnan(value) else found == np.inf


def test_nothing_is_done_at_temperature_0() -> None:
    assert top_logits_of(np.ones((3, 1, 300), dtype=np.float32), 0.0)[:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("shape", "cause"), [((1, 300), r"\[B, T, V\]"), ((1, 0, 300), "at least one position")])
def test_other_shapes_are_refused(shape: tuple[int, ...], cause: str) -> None:
    with pytest.raises(Exception, match=cause):
        top_logits_of(np.zeros(shape, dtype=np.float32), 1.0)
