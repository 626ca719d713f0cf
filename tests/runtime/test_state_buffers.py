"""State in two sets of buffers, and its position."""

import numpy as np
import pytest

from liger_export.errors import InputError
from liger_export.runtime.buffers import CPU, Buffer, new_buffer
from liger_export.runtime.state_buffers import StateBuffers
from liger_export.state import StateTensor

TABLE = (StateTensor(0, "recurrent_state", (2, 3), "float32"), StateTensor(0, "key", (4,), "float16"))
NAMES = [entry.past_name for entry in TABLE]


@pytest.fixture
def state() -> StateBuffers:
    return StateBuffers(TABLE, new_state, in_place=NAMES[:1])


def new_state(entry: StateTensor) -> Buffer:
    return new_buffer(CPU, (1, *entry.shape), entry.dtype)


def test_only_tensors_in_place_have_a_single_buffer(state: StateBuffers) -> None:
    first, second = state.sets
    assert [one is other for one, other in zip(first, second, strict=True)] == [True, False]
    assert len(state.addresses()) == 3


def test_a_call_moves_the_position_and_the_state_to_the_other_set(state: StateBuffers) -> None:
    state.sets[1 - state.turn][1].read().fill(7)  # as a graph would
    assert not state.read()[NAMES[1]].any()
    state.advance(5)
    assert (state.turn, state.position) == (1, 5)
    assert (state.read()[NAMES[1]] == 7).all()
    state.clear()
    assert state.position == 0
    assert not any(tensor.any() for tensor in state.read().values())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(state: StateBuffers) -> None:
    ones = {name: np.ones_like(tensor) for name, tensor in state.read().items()}
    state.write(3, ones)
    wrong = [
        {NAMES[0]: ones[NAMES[0]]},
        ones | {NAMES[1]: ones[NAMES[1]][:, :-1]},
        ones | {NAMES[1]: ones[NAMES[1]].astype(np.float32)},
    ]
    for tensors in wrong:
        with pytest.raises(InputError, match=r"past_key_values\.0\.key is not float16 \[1, 4\]"):
            state.write(9, {name: tensor * 2 for name, tensor in tensors.items()})
    with pytest.raises(InputError, match="position -1"):
        state.write(-1, ones)
    assert state.position == 3
    assert all((tensor == 1).all() for tensor in state.read().values())
