"""Every mixer's stock body on ONNX Runtime against its equations in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.ops import SIGNATURES
from tests.onnx_functions.sessions import call, call_at, run, session_of, shared_feed, zero_states
from tests.ops.cases import Case, assert_equal, every_mixer, reference, sequences, stacked
from tests.tiny import relative_l2

BOUND = 1e-5


@every_mixer
@pytest.mark.parametrize("length", [1, 5, 8, 9, 16, 17, 33, 50])
def test_whole_sequence_equals_reference(mixer: str, length: int) -> None:
    case = Case(mixer)
    inputs = sequences(case, length)
    assert_equal(run(case, inputs), reference(case, inputs), BOUND)


@every_mixer
def test_single_steps_equal_reference(mixer: str) -> None:
    case = Case(mixer)
    inputs = sequences(case, 37)
    assert_equal(run(case, inputs, range(1, 37)), reference(case, inputs), BOUND)


@settings(max_examples=8, deadline=None)
@given(
    data=st.data(),
    length=st.integers(2, 70),
    num_key_value_heads=st.integers(1, 2),
    num_queries_per_kv=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16]),
    window=st.integers(1, 20),
    slots=st.sampled_from([1, 4, 8]),
)
@every_mixer
def test_any_split_equals_reference_with_nan_in_unused_rows(
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
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6)))
    # One sequence: GroupQueryAttention continues several sequences only by one token per call.
    inputs = sequences(case, length, batch=1)
    assert_equal(run(case, inputs, cuts, poison=True), reference(case, inputs), BOUND)


@every_mixer
def test_several_sequences_prefill_together_and_then_step(mixer: str) -> None:
    case = Case(mixer)
    inputs = sequences(case, 30, batch=3)
    assert_equal(run(case, inputs, [21, *range(22, 30)], poison=True), reference(case, inputs), BOUND)


def test_lolcats_supports_head_sizes_that_are_not_multiples_of_eight() -> None:
    case = Case("lolcats", head_dim=10)
    inputs = sequences(case, 30)
    assert_equal(run(case, inputs, [17, 18]), reference(case, inputs), BOUND)


def test_lolcats_continues_several_sequences_by_several_tokens() -> None:
    case = Case("lolcats")
    inputs = sequences(case, 41, batch=3)
    assert_equal(run(case, inputs, [3, 9, 10, 26], poison=True), reference(case, inputs), BOUND)


@pytest.mark.parametrize(("mixer", "added"), [*((each, 1) for each in SIGNATURES), ("lolcats", 4)])
def test_rows_of_a_batch_may_be_at_different_positions(mixer: str, added: int) -> None:
    case, seen = Case(mixer), (3, 23)
    rows = [sequences(case, max(seen) + added).row(index) for index in range(2)]
    states = [call(case, row, zero_states(case, 1), 0, length) for row, length in zip(rows, seen, strict=True)]
    measured = call_at(
        case,
        stacked([row.between(length, length + added) for row, length in zip(rows, seen, strict=True)]),
        {name: np.concatenate([state[name] for state in states]) for name in case.signature.states},
        np.array(seen)[:, None] + np.arange(added),
    )
    for index, (row, length) in enumerate(zip(rows, seen, strict=True)):
        alone = run(case, row.between(0, length + added), [length])
        np.testing.assert_allclose(measured["output"][index], alone["output"][0, length:], atol=1e-6)
        for name in case.signature.states:
            held = slice(length + added) if name.startswith("window") else slice(None)
            np.testing.assert_allclose(measured[name][index][:, held], alone[name][0][:, held], atol=1e-6)


@every_mixer
@pytest.mark.parametrize("cuts", [[], range(1, 40)], ids=["whole", "steps"])
def test_strong_keys_neither_overflow_nor_lose_digits(mixer: str, cuts: range) -> None:
    case = Case(mixer)
    inputs = sequences(case, 40, key_scale=30.0)
    assert inputs.key.abs().max() == 60
    assert_equal(run(case, inputs, cuts), reference(case, inputs), BOUND)


@pytest.mark.parametrize("mixer", ["gla", "gsa", "hgrn2"])
@pytest.mark.parametrize("weight", [0.25, 0.9])
def test_recurrent_weight_shares_the_output(mixer: str, weight: float) -> None:
    case = Case(mixer, recurrent_weight=weight)
    inputs = sequences(case, 20)
    assert_equal(run(case, inputs, [19]), reference(case, inputs), BOUND)


@every_mixer
def test_layers_of_one_graph_do_not_mix_their_names(mixer: str) -> None:
    case = Case(mixer)
    session = session_of(case, layers=3)
    inputs = sequences(case, 20, batch=1)
    feed = shared_feed(inputs, np.arange(20)[None])
    feed |= {f"{name}.{layer}": array for layer in range(3) for name, array in zero_states(case, 1).items()}
    results = dict(zip((output.name for output in session.get_outputs()), session.run(None, feed), strict=True))
    for layer in range(3):
        output = results[f"output.{layer}"]
        expected = reference(case, inputs)["output"]
        assert relative_l2(torch.from_numpy(output), expected) <= BOUND
        inputs = inputs.projected(torch.from_numpy(output).double(), inputs.key, inputs.value)


@every_mixer
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("position", [2**31 - 2, 2**31 - 1, 2**32, 2**40])
def test_a_full_window_reads_the_same_at_any_position(mixer: str, count: int, position: int) -> None:
    case = Case(mixer)
    inputs = sequences(case, count, batch=2 if count == 1 else 1)
    random = np.random.default_rng(0)
    states = {
        name: random.random(array.shape, np.float32) for name, array in zero_states(case, len(inputs.query)).items()
    }
    near, far = (
        call_at(case, inputs, states, np.tile(np.arange(start, start + count), (len(inputs.query), 1)))
        for start in (case.window_size, position)
    )
    for name, expected in near.items():
        np.testing.assert_array_equal(far[name], expected)
