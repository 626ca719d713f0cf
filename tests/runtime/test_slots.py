"""Law 3 for sequences that join and leave one set of buffers: each is exactly what it is alone."""

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.convert import convert
from liger_export.errors import InputError
from liger_export.linearize import LinearizeSettings
from liger_export.runtime import Session, load
from liger_export.runtime.dynamic import DynamicExecutor
from liger_export.runtime.executor import Logits
from liger_export.runtime.slots import Row, Slots
from tests.plugins.sessions import needs_library
from tests.tiny import relative_l2, write_liger

SLOTS = 6  # a padded step of five rows then reaches the sixth
ACTIONS = ["open", "open", "open", "read", "read", "join", "join", "close", "step", "step"]  # slots are mostly full
TEXTS = [np.random.default_rng(seed).integers(1, 250, 60) for seed in range(20)]
GRAPHS = [
    pytest.param("gla", "stock", id="gla-stock"),
    pytest.param("lolcats", "stock", id="lolcats-stock"),  # most of its tensors have two buffers
    pytest.param("gsa", "stock", id="gsa-stock"),
    pytest.param("gla", "fused", marks=needs_library, id="gla-fused"),
    pytest.param("hgrn2", "fused", marks=needs_library, id="hgrn2-fused"),
]


@functools.cache
def opened(mixer: str, lowering: str) -> Session:
    """A session of a tiny package created once per test run. With gla, its second layer keeps softmax."""
    directory = Path(tempfile.mkdtemp())
    softmax = {"keep_softmax_every": 2, "softmax_window": 16} if mixer == "gla" else {}
    settings = LinearizeSettings(mixer=mixer, **softmax)
    checkpoint = write_liger(directory / "liger", settings=settings)
    convert(checkpoint, directory / "package", lowering="fused" if lowering == "fused" else "stock")
    return load(directory / "package", lowering=lowering, device="cpu")


@functools.cache
def alone(mixer: str, lowering: str, text: int) -> Logits:
    """The logits after each token of a text that a session reads alone."""
    session = opened(mixer, lowering)
    session.reset()
    return session.all_logits(TEXTS[text].tolist())


@dataclass
class Reader:
    """A text in a slot, and the logits after each token that ends a call."""

    text: int
    row: Row
    logits: dict[int, Logits] = field(default_factory=dict)

    def next(self, count: int = 1) -> Any:
        return TEXTS[self.text][self.row.position : self.row.position + count]


def do(action: str, data: st.DataObject, slots: Slots, waiting: list[Reader], running: dict[Row, Reader]) -> None:
    """Do one thing that a scheduler may do at any time."""
    if action == "open" and len(waiting) + len(running) < SLOTS:
        text = data.draw(st.integers(0, len(TEXTS) - 1))
        waiting.append(Reader(text, slots.open()))
    elif action == "read" and waiting:
        reader = data.draw(st.sampled_from(waiting))
        tokens = reader.next(data.draw(st.integers(1, 12)))
        if len(tokens):
            prediction = slots.read(reader.row, tokens)
            reader.logits[reader.row.position] = prediction.last_logits().copy()
    elif action == "join" and waiting:
        reader = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        slots.join(reader.row)
        running[reader.row] = reader
    elif action == "close" and [*waiting, *running.values()]:
        reader = data.draw(st.sampled_from([*waiting, *running.values()]))
        slots.close(reader.row)
        running.pop(reader.row, None)
        if reader in waiting:
            waiting.remove(reader)
    elif action == "step":
        for row in [row for row in slots.running if row.position == len(TEXTS[0])]:
            slots.close(row)
            del running[row]
        if running:
            readers = [running[row] for row in slots.running]
            for reader, prediction in zip(readers, slots.step([int(r.next()[0]) for r in readers]), strict=True):
                reader.logits[reader.row.position] = prediction.last_logits().copy()


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "lowering"), GRAPHS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_sequences_that_join_and_leave_are_what_they_are_alone(data: st.DataObject, mixer: str, lowering: str) -> None:
    executor = cast(DynamicExecutor, opened(mixer, lowering).executor)
    slots = Slots(executor.graph, SLOTS, pads=data.draw(st.booleans()))
    waiting: list[Reader] = []
    running: dict[Row, Reader] = {}
    everyone: list[Reader] = []
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), min_size=30, max_size=60)):
        do(action, data, slots, waiting, running)
        everyone += [reader for reader in (*waiting, *running.values()) if reader not in everyone]
        assert [row.index for row in slots.running] == list(range(len(running)))
    for reader in everyone:
        expected = alone(mixer, lowering, reader.text)
        for position, logits in reader.logits.items():
            assert relative_l2(torch.from_numpy(logits), torch.from_numpy(expected[position - 1])) < 1e-5
            assert logits.argmax() == expected[position - 1].argmax()


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "lowering"), GRAPHS)
def test_a_state_moves_between_slots_and_sessions(mixer: str, lowering: str) -> None:
    session, text = opened(mixer, lowering), TEXTS[0].tolist()
    session.reset()
    session.prefill(text[:30])
    slots = Slots.of(session.executor, SLOTS)
    others = [slots.open() for _ in range(2)]
    for row in others:  # the state below is copied past them
        slots.read(row, TEXTS[1][:3])
        slots.join(row)
    row = slots.open(session.position, session.state().tensors)
    slots.join(row)
    slots.close(others[0])
    for token in text[30:40]:
        prediction = slots.step([token if each is row else 5 for each in slots.running])[slots.running.index(row)]
        assert relative_l2(torch.from_numpy(prediction.last_logits()), torch.from_numpy(session.step(token))) < 1e-5
    for name, tensor in session.state().tensors.items():
        assert relative_l2(torch.from_numpy(slots.read_state(row)[name]), torch.from_numpy(tensor)) < 1e-5


def test_a_row_starts_from_zeros_wherever_it_lies() -> None:
    slots = Slots.of(opened("gla", "stock").executor, 2)
    for _ in range(4):
        row = slots.open()
        assert not any(tensor.any() for tensor in slots.read_state(row).values())
        slots.read(row, TEXTS[0][:9])
        slots.join(row)
        slots.step([3])
        slots.close(row)


def test_a_state_of_another_shape_is_refused() -> None:
    session = opened("gla", "stock")
    tensors = session.state().tensors
    slots = Slots.of(session.executor, 1)
    with pytest.raises(InputError, match=r"past_key_values.0.key is not float32"):
        slots.open(3, tensors | {"past_key_values.0.key": np.zeros((1, 2))})


@pytest.mark.parametrize(("mixer", "lowering"), [GRAPHS[3]])
def test_top_logits_are_those_of_the_most_frequent_temperature(mixer: str, lowering: str) -> None:
    slots = Slots.of(opened(mixer, lowering).executor, 3)
    for text in range(3):
        row = slots.open()
        slots.read(row, TEXTS[text][:5])
        slots.join(row)
    predictions = slots.step([1, 2, 3], [0.0, 0.7, 0.7])
    assert [prediction.top_logits(0.7) is None for prediction in predictions] == [False] * 3
    assert predictions[0].top_logits(0.5) is None
    for prediction in predictions:
        top = prediction.top_logits(0.7)
        assert top is not None
        assert top.logits[0] == prediction.last_logits().max()
        assert top.ids[0] == prediction.argmax() == prediction.last_logits().argmax()


def test_a_row_that_joins_keeps_its_state_when_it_takes_the_place_of_a_waiting_one() -> None:
    """The waiting row must not be moved to where the joining row still is."""
    slots = Slots.of(opened("gla", "stock").executor, 3)
    rows = [slots.open() for _ in range(3)]
    for text, row in enumerate(rows):
        slots.read(row, TEXTS[text][:20])
    first, second, _ = sorted(rows, key=lambda row: -row.index)
    for row in (second, first):  # the place of the third is the one that the first takes
        slots.join(row)
    for index, prediction in enumerate(slots.step([int(TEXTS[rows.index(row)][20]) for row in slots.running])):
        expected = alone("gla", "stock", rows.index(slots.running[index]))[20]
        np.testing.assert_allclose(prediction.last_logits(), expected, rtol=1e-4, atol=1e-5)
