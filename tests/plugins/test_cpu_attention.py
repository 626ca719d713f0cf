"""The attention operators and ``liger::GatedSiLU`` on a CPU, against the equations in float64."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, ValueInfoProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from liger_export.config import MIXERS
from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from tests.onnx_functions.sessions import zero_states
from tests.ops.cases import Case, assert_equal, reference, sequences
from tests.plugins.sessions import ONNX_TYPES, feed_of, model_of, needs_library, run, session

pytestmark = needs_library
every_mixer = pytest.mark.parametrize("mixer", MIXERS)

BOUND = 1e-5
HALF_BOUND = 5e-3


@every_mixer
@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 50])
def test_whole_sequence_equals_reference(mixer: str, length: int) -> None:
    case = Case(mixer)
    inputs = sequences(case, length)
    assert_equal(run(case, inputs), reference(case, inputs), BOUND)


@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    length=st.integers(2, 70),
    kv_heads=st.integers(1, 3),
    queries=st.integers(1, 9),
    head_dim=st.sampled_from([8, 16, 24, 40, 64]),
    window=st.integers(1, 20),
    weight=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    slots=st.sampled_from([1, 2, 8]),
    feature_dim=st.integers(1, 20),
    packed=st.booleans(),
)
@every_mixer
def test_any_split_equals_reference_with_nan_in_unused_rows(
    mixer: str, data: st.DataObject, length: int, kv_heads: int, queries: int, head_dim: int, window: int,
    weight: float, slots: int, feature_dim: int, packed: bool,
) -> None:  # fmt: skip
    case = Case(mixer, kv_heads, queries, head_dim, window, slots, feature_dim, recurrent_weight=weight)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6)))
    inputs = sequences(case, length)
    assert_equal(run(case, inputs, cuts, packed=packed), reference(case, inputs), BOUND)


@every_mixer
@pytest.mark.parametrize("cuts", [(), range(1, 150), (3, 64, 65, 129)], ids=["whole", "steps", "mixed"])
def test_model_sized_heads_equal_reference(mixer: str, cuts: range | tuple[int, ...]) -> None:
    case = Case(mixer, num_key_value_heads=2, num_queries_per_kv=4, head_dim=128, window_size=64)
    inputs = sequences(case, 150, batch=1)
    assert_equal(run(case, inputs, cuts), reference(case, inputs), BOUND)


@every_mixer
@pytest.mark.parametrize("strength", [0.01, 8.0, 25.0])
def test_weak_and_strong_gates_equal_reference(mixer: str, strength: float) -> None:
    case = Case(mixer, head_dim=16)
    inputs = sequences(case, 40, key_scale=strength)
    assert_equal(run(case, inputs, [13, 14]), reference(case, inputs), BOUND)


@every_mixer
def test_half_precision_equals_reference_and_any_split_the_same_bits(mixer: str) -> None:
    case = Case(mixer, head_dim=64, window_size=16)
    inputs = sequences(case, 40)
    inputs = inputs.projected(*(tensor.half().double() for tensor in inputs.projections))
    whole, steps = run(case, inputs, (), "float16"), run(case, inputs, range(1, 40), "float16")
    assert_equal(whole, reference(case, inputs), HALF_BOUND)
    for name, array in whole.items():
        np.testing.assert_array_equal(array, steps[name], err_msg=name)


@every_mixer
@pytest.mark.parametrize("head_dim", [8, 64])
def test_single_steps_give_the_same_bits_as_one_call(mixer: str, head_dim: int) -> None:
    case = Case(mixer, head_dim=head_dim, window_size=6)
    inputs = sequences(case, 20)
    whole, steps = run(case, inputs), run(case, inputs, range(1, 20))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, steps[name], err_msg=name)


@every_mixer
def test_batch_neighbours_change_no_bit(mixer: str) -> None:
    case = Case(mixer)
    inputs = sequences(case, 20, batch=3)
    together, alone = run(case, inputs, [9]), run(case, inputs.row(1), [9])
    for name, array in together.items():
        np.testing.assert_array_equal(array[1:2], alone[name], err_msg=name)


@every_mixer
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "key"])
def test_nan_and_infinity_come_through_where_the_reference_has_them(mixer: str, name: str, number: float) -> None:
    case = Case(mixer, head_dim=16)
    inputs = sequences(case, 20)
    getattr(inputs, name)[0, 7, 3] = number
    expected, found = reference(case, inputs), run(case, inputs, [5, 6, 7, 8, 9])
    assert not expected["output"].isfinite().all()
    for tensor, array in zip(expected.values(), (found[name] for name in expected), strict=True):
        finite = tensor.isfinite().numpy()
        np.testing.assert_array_equal(np.isfinite(array), finite)
        np.testing.assert_allclose(array[finite], tensor.numpy()[finite], rtol=1e-4, atol=1e-5)


@every_mixer
def test_state_updated_where_it_lies_gives_the_same_bits(mixer: str) -> None:
    case = Case(mixer)
    inputs = sequences(case, 25)
    expected = run(case, inputs, range(1, 25))
    model = session(model_of(case))
    states = zero_states(case, 2)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in states.items()}
    for token in range(25):
        binding = model.io_binding()
        for name, array in feed_of(inputs.between(token, token + 1), np.full((2, 1), token)).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("output")
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"next_{name}", value)
        model.run_with_iobinding(binding)
    for name, array in states.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@every_mixer
@pytest.mark.parametrize("tokens", [0, 3, 12])
def test_padding_leaves_no_trace(mixer: str, tokens: int) -> None:
    case = Case(mixer)
    inputs, seen = sequences(case, 30), 12
    before = run(case, inputs.between(0, seen))
    before.pop("output")
    positions = np.tile(np.where(np.arange(12) < tokens, seen + np.arange(12), -1), (2, 1))
    feed = feed_of(inputs.between(seen, seen + 12), positions)
    feed["query"][:, tokens:] = np.nan
    output, *nexts = session(model_of(case)).run(None, feed | before)
    expected = run(case, inputs.between(0, seen + tokens))
    assert not output[:, tokens:].any()
    np.testing.assert_allclose(output[:, :tokens], expected.pop("output")[:, seen:], rtol=1e-4, atol=1e-6)
    for name, array in zip(case.signature.states, nexts, strict=True):
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_wrong_attributes_and_shapes_are_refused_with_what_is_wanted() -> None:
    case = Case("gla")
    with pytest.raises(RuntimeException, match="no mixer gsa"):
        session(model_of(case, mixer="gsa"))
    with pytest.raises(RuntimeException, match="multiple of the key/value heads"):
        session(model_of(case, num_heads=3))
    with pytest.raises(RuntimeException, match="slots that divides the head size"):
        session(model_of(Case("gsa"), num_slots=3))
    inputs = sequences(case, 4)
    feed = feed_of(inputs, np.tile(np.arange(4), (2, 1))) | zero_states(case, 2)
    with pytest.raises(Fail, match=r"cos must have shape \[2, 4, 4\], not \[2, 3, 4\]"):
        session(model_of(case)).run(None, feed | {"cos": feed["cos"][:, :3]})
    with pytest.raises(Fail, match="0 or more, and -1 for padding at the end"):
        session(model_of(case)).run(None, feed | {"position_ids": np.array([[0, 1, 2, 3], [-1, 0, 1, 2]])})


def run_node(name: str, values: list[ValueInfoProto], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run an operator with one input and one output, described by ``values``."""
    node = helper.make_node(name, [values[0].name], [values[1].name], domain=DOMAIN)
    graph = helper.make_graph([node], name, values[:1], values[1:])
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return list(session(model.SerializeToString()).run(None, feed))


@pytest.mark.parametrize("dtype", ONNX_TYPES)
@pytest.mark.parametrize("size", [8, 40, 4096, 5000])
def test_gated_silu_equals_its_definition(dtype: str, size: int) -> None:
    random = np.random.default_rng(size)
    rows = (4 * random.standard_normal((2, 3, 2 * size))).astype(dtype)
    shapes = (("rows", [2, 3, 2 * size]), ("gated", [2, 3, size]))
    values = [helper.make_tensor_value_info(name, ONNX_TYPES[dtype], shape) for name, shape in shapes]
    (found,) = run_node("GatedSiLU", values, {"rows": rows})
    gate, up = np.split(rows.astype(np.float64), 2, axis=-1)
    expected = gate / (1 + np.exp(-gate)) * up
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < (1e-6 if dtype == "float32" else 1e-3)


@pytest.mark.parametrize("size", [1, 8, 13, 1000])
def test_most_likely_is_the_first_argmax(size: int) -> None:
    random = np.random.default_rng(size)
    logits = random.integers(-9, 9, (2, 3, size)).astype(np.float32)
    logits[0, 0, 1:] = -np.inf
    np.testing.assert_array_equal(most_likely(logits), logits.argmax(-1))


@pytest.mark.parametrize("at", [0, 7, 8, 990, 999])
@pytest.mark.parametrize("value", [np.nan, -np.float32(np.nan), np.inf])
def test_nothing_is_most_likely_if_a_logit_is_nan_or_infinite(value: float, at: int) -> None:
    logits = np.random.default_rng(at).standard_normal((1, 4, 1000)).astype(np.float32)
    logits[0, 1, at] = value
    logits[0, 2] = -np.inf
    logits[0, 3] = value
    assert most_likely(logits).tolist() == [[logits[0, 0].argmax(), -1, -1, -1]]


def most_likely(logits: np.ndarray) -> np.ndarray:
    values = [
        helper.make_tensor_value_info("logits", ONNX_TYPES["float32"], list(logits.shape)),
        helper.make_tensor_value_info("chosen", TensorProto.INT64, list(logits.shape[:2])),
    ]
    (found,) = run_node("MostLikely", values, {"logits": logits})
    return found


@pytest.mark.parametrize("dtype", ONNX_TYPES)
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_last_positions_are_the_last_of_each_sequence(dtype: str, count: int) -> None:
    rows = np.arange(2 * 5 * 3).reshape(2, 5, 3).astype(dtype)
    values = [helper.make_tensor_value_info(name, ONNX_TYPES[dtype], None) for name in ("rows", "kept")]
    node = helper.make_node("LastPositions", ["rows", "count"], ["kept"], domain=DOMAIN)
    inputs = [values[0], helper.make_tensor_value_info("count", TensorProto.INT64, [])]
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET)]
    graph = helper.make_graph([node], "last", inputs, values[1:])
    model = session(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
    (found,) = model.run(None, {"rows": rows, "count": np.array(count)})
    np.testing.assert_array_equal(found, rows[:, -count:])
    for wrong in (6, -1, -(2**63), 2**63 - 1):
        with pytest.raises(Fail, match=f"from 0 to the tokens read, 5, not {wrong}"):
            model.run(None, {"rows": rows, "count": np.array(wrong)})
    for shape in ((0,), (2,), (0, 4)):
        with pytest.raises(Fail, match=r"logits_to_keep must have shape \[\], not \["):
            model.run(None, {"rows": rows, "count": np.zeros(shape, np.int64)})


@every_mixer
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("position", [2**31 - 2, 2**32, 2**40])
def test_a_full_window_reads_the_same_at_any_position(mixer: str, count: int, position: int) -> None:
    case = Case(mixer)
    inputs, random = sequences(case, count, batch=1), np.random.default_rng(0)
    states = {name: random.random(array.shape, np.float32) for name, array in zero_states(case, 1).items()}
    near, far = (
        session(model_of(case)).run(None, feed_of(inputs, np.arange(start, start + count)[None]) | states)
        for start in (case.window_size, position)
    )
    for measured, expected in zip(far, near, strict=True):
        np.testing.assert_array_equal(measured, expected)
