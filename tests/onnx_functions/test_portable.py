"""Every mixer's portable body, for one token and many, on ONNX Runtime, against its equations in float64."""

from functools import cache
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from liger_export.onnx_functions.portable import Sizes, portable_function
from tests.onnx_functions.sessions import Arrays, shared_feed, zero_states
from tests.ops.cases import Case, Sequences, assert_equal, every_mixer, reference, sequences

BOUND = 1e-5
PREFILL_LENGTH = 32


def sizes_of(case: Case, length: int) -> Sizes:
    return Sizes(
        length,
        case.num_attention_heads,
        case.num_key_value_heads,
        case.head_dim,
        case.window_size,
        TensorProto.FLOAT,
        num_slots=case.num_slots,
        feature_dim=case.feature_dim,
        gate_normalizer=case.gate_normalizer,
        recurrent_weight=case.recurrent_weight,
    )


@cache
def session_of(case: Case, length: int) -> onnxruntime.InferenceSession:
    """A graph of one operator node, for calls of ``length`` tokens."""
    function = portable_function(case.mixer, "Attention", sizes_of(case, length))
    width, num_key_value_heads = case.head_dim, case.num_key_value_heads
    shapes = {
        "query": [1, length, case.num_attention_heads * width],
        "key": [1, length, num_key_value_heads * width],
        "value": [1, length, num_key_value_heads * width],
        "cos": [1, length, width // 2],
        "sin": [1, length, width // 2],
        "position_ids": [1, length],
        **{name: [1, *shape] for name, shape in case.state_shapes.items()},
        **{name: list(shape) for name, shape in case.learned_shapes.items()},
    }
    kind = {"position_ids": TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node("Attention", list(case.signature.inputs), list(case.signature.outputs), domain="liger")],
        "mixer",
        [helper.make_tensor_value_info(n, kind.get(n, TensorProto.FLOAT), s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in case.signature.outputs],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("liger", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
    assert {node.domain for node in function.node} == {""}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(case: Case, inputs: Sequences, cuts: list[int], *, poison: bool = False) -> Arrays:
    """Run one sequence in calls that end at ``cuts``, of one token or padded to ``PREFILL_LENGTH`` tokens.

    ``poison`` fills unused window rows with NaN before every call, and padding with large values.
    """
    states, joined = zero_states(case, 1), []
    for start, stop in pairwise((0, *cuts, inputs.length)):
        if poison:
            for name in ("window_key", "window_value"):
                states[name] = states[name].copy()
                states[name][:, :, start:] = np.nan
        length = 1 if stop - start == 1 else PREFILL_LENGTH
        feed = shared_feed(inputs.between(start, stop), np.arange(start, stop)[None])
        for name in ("query", "key", "value", "cos", "sin"):
            padding = ((0, 0), (0, length - (stop - start)), (0, 0))
            feed[name] = np.pad(feed[name], padding, constant_values=50.0 if poison else 0.0)
        feed["position_ids"] = np.pad(feed["position_ids"], ((0, 0), (0, length - (stop - start))), constant_values=-1)
        results = session_of(case, length).run(None, feed | states)
        states = dict(zip(case.signature.states, results[1:], strict=True))
        joined.append(results[0][:, : stop - start])
    return {"output": np.concatenate(joined, axis=1), **states}


def pieces(length: int) -> list[int]:
    return list(range(PREFILL_LENGTH, length, PREFILL_LENGTH))


@every_mixer
@pytest.mark.parametrize("length", [2, 8, 9, 16, 17, 32, 33, 100])
def test_whole_sequence_equals_reference(mixer: str, length: int) -> None:
    case = Case(mixer)
    inputs = sequences(case, length, batch=1)
    assert_equal(run(case, inputs, pieces(length)), reference(case, inputs), BOUND)


@every_mixer
@pytest.mark.parametrize("window", [1, 8])
def test_single_steps_equal_reference(mixer: str, window: int) -> None:
    case = Case(mixer, window_size=window)
    inputs = sequences(case, 37, batch=1)
    assert_equal(run(case, inputs, list(range(1, 37))), reference(case, inputs), BOUND)


@settings(max_examples=6, deadline=None)
@given(
    data=st.data(),
    length=st.integers(2, 70),
    num_key_value_heads=st.integers(1, 2),
    num_queries_per_kv=st.integers(1, 3),
    head_dim=st.sampled_from([8, 10]),
    window=st.integers(1, 40),
    slots=st.sampled_from([1, 2]),
)
@every_mixer
def test_any_split_equals_reference_with_poison_in_unused_rows_and_padding(
    mixer: str,
    data: st.DataObject,
    length: int,
    num_key_value_heads: int,
    num_queries_per_kv: int,
    head_dim: int,
    window: int,
    slots: int,
) -> None:
    case = Case(mixer, num_key_value_heads, num_queries_per_kv, head_dim, window, slots)
    drawn = data.draw(st.sets(st.integers(1, length - 1), max_size=6))
    cuts = sorted({*drawn, *pieces(length)})
    inputs = sequences(case, length, batch=1)
    assert_equal(run(case, inputs, cuts, poison=True), reference(case, inputs), BOUND)


@every_mixer
@pytest.mark.parametrize("cuts", [[32], list(range(1, 40))], ids=["chunks", "steps"])
def test_strong_keys_neither_overflow_nor_lose_digits(mixer: str, cuts: list[int]) -> None:
    case = Case(mixer)
    inputs = sequences(case, 40, batch=1, key_scale=30.0)
    assert inputs.key.abs().max() == 60
    assert_equal(run(case, inputs, cuts), reference(case, inputs), BOUND)


@pytest.mark.parametrize("mixer", ["gla", "gsa", "hgrn2"])
def test_recurrent_weight_shares_the_output(mixer: str) -> None:
    case = Case(mixer, recurrent_weight=0.9)
    inputs = sequences(case, 33, batch=1)
    assert_equal(run(case, inputs, [32]), reference(case, inputs), BOUND)


@every_mixer
@pytest.mark.parametrize("length", [1, PREFILL_LENGTH])
@pytest.mark.parametrize("position", [2**31 - 2, 2**32, 2**40])
def test_a_full_window_reads_the_same_at_any_position(mixer: str, length: int, position: int) -> None:
    case = Case(mixer)
    inputs, random = sequences(case, length, batch=1), np.random.default_rng(0)
    states = {name: random.random(array.shape, np.float32) for name, array in zero_states(case, 1).items()}
    near, far = (
        session_of(case, length).run(None, shared_feed(inputs, np.arange(start, start + length)[None]) | states)
        for start in (case.window_size, position)
    )
    for measured, expected in zip(far, near, strict=True):
        np.testing.assert_array_equal(measured, expected)
