"""The ONNX form of every mixer, on ONNX Runtime, against its equations in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.mixers import Arrays, Case, call, call_at, reference, run, sequences, session_of, stacked, zero_states
from tests.tiny import relative_l2

BOUND = 1e-5
MIXERS = ["GLAAttention", "GSAAttention", "HGRN2Attention", "LoLCATsAttention", "SoftmaxAttention"]
every_mixer = pytest.mark.parametrize("operator", MIXERS)


def assert_equal(measured: Arrays, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        if not tensor.any():  # nothing has left the window yet
            assert not measured[name].any(), name
            continue
        error = relative_l2(torch.from_numpy(measured[name]), tensor)
        assert error <= BOUND, f"{name}: relative L2 {error:.1e}"


@every_mixer
@pytest.mark.parametrize("length", [1, 5, 8, 9, 16, 17, 33, 50])
def test_whole_sequence_equals_reference(operator: str, length: int) -> None:
    case = Case(operator)
    inputs = sequences(case, length)
    assert_equal(run(case, inputs), reference(case, inputs))


@every_mixer
def test_single_steps_equal_reference(operator: str) -> None:
    case = Case(operator)
    inputs = sequences(case, 37)
    assert_equal(run(case, inputs, range(1, 37)), reference(case, inputs))


@settings(max_examples=8, deadline=None)
@given(
    data=st.data(),
    length=st.integers(2, 70),
    groups=st.integers(1, 2),
    repeats=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16]),
    window=st.integers(1, 20),
    slots=st.sampled_from([1, 4, 8]),
)
@every_mixer
def test_any_split_equals_reference_with_nan_in_unused_rows(
    operator: str, data: st.DataObject, length: int, groups: int, repeats: int, head_dim: int, window: int, slots: int
) -> None:
    case = Case(operator, groups * repeats, groups, head_dim, window, slots)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6)))
    # One sequence: GroupQueryAttention continues several only by one token a call.
    inputs = sequences(case, length, batch=1)
    assert_equal(run(case, inputs, cuts, poison=True), reference(case, inputs))


@every_mixer
def test_several_sequences_prefill_together_and_then_step(operator: str) -> None:
    case = Case(operator)
    inputs = sequences(case, 30, batch=3)
    assert_equal(run(case, inputs, [21, *range(22, 30)], poison=True), reference(case, inputs))


def test_lolcats_continues_several_sequences_by_several_tokens() -> None:
    case = Case("LoLCATsAttention")
    inputs = sequences(case, 41, batch=3)
    assert_equal(run(case, inputs, [3, 9, 10, 26], poison=True), reference(case, inputs))


@pytest.mark.parametrize(("operator", "added"), [*((each, 1) for each in MIXERS), ("LoLCATsAttention", 4)])
def test_rows_of_a_batch_may_stand_at_different_positions(operator: str, added: int) -> None:
    case, seen = Case(operator), (3, 23)
    rows = [sequences(case, max(seen) + added).row(index) for index in range(2)]
    states = [call(case, row, zero_states(case, 1), 0, length) for row, length in zip(rows, seen, strict=True)]
    measured = call_at(
        case,
        stacked([row.between(length, length + added) for row, length in zip(rows, seen, strict=True)]),
        {name: np.concatenate([state[name] for state in states]) for name in case.states},
        np.array(seen)[:, None] + np.arange(added),
    )
    for index, (row, length) in enumerate(zip(rows, seen, strict=True)):
        alone = run(case, row.between(0, length + added), [length])
        np.testing.assert_allclose(measured["output"][index], alone["output"][0, length:], atol=1e-6)
        for name in case.states:
            held = slice(length + added) if name.startswith("window") else slice(None)
            np.testing.assert_allclose(measured[name][index][:, held], alone[name][0][:, held], atol=1e-6)


@every_mixer
@pytest.mark.parametrize("cuts", [[], range(1, 40)], ids=["whole", "steps"])
def test_strong_keys_neither_overflow_nor_lose_digits(operator: str, cuts: range) -> None:
    case = Case(operator)
    inputs = sequences(case, 40, key_scale=30.0)
    assert inputs.key.abs().max() == 60
    assert_equal(run(case, inputs, cuts), reference(case, inputs))


@pytest.mark.parametrize("operator", ["GLAAttention", "GSAAttention", "HGRN2Attention"])
@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_recurrent_weight_shares_the_output(operator: str, weight: float) -> None:
    case = Case(operator, options={"recurrent_weight": weight})
    inputs = sequences(case, 20)
    assert_equal(run(case, inputs, [19]), reference(case, inputs))


@every_mixer
def test_layers_of_one_graph_do_not_mix_their_names(operator: str) -> None:
    case = Case(operator)
    session = session_of(case, layers=3)
    inputs = sequences(case, 20, batch=1)
    feed = {
        "query": inputs.query,
        "key": inputs.key,
        "value": inputs.value,
        "cos": inputs.angles.cos(),
        "sin": inputs.angles.sin(),
        **inputs.learned,
    }
    arrays = {name: tensor.float().numpy() for name, tensor in feed.items()}
    arrays["position_ids"] = np.arange(20)[None]
    arrays |= {f"{name}.{layer}": array for layer in range(3) for name, array in zero_states(case, 1).items()}
    results = dict(zip((output.name for output in session.get_outputs()), session.run(None, arrays), strict=True))
    for layer in range(3):
        output = results[f"output.{layer}"]
        expected = reference(case, inputs)["output"]
        assert relative_l2(torch.from_numpy(output), expected) <= BOUND
        inputs.query = torch.from_numpy(output).double()
