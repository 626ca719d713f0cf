"""Interrupted calls, and several users of one session."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from liger_export.errors import InputError
from liger_export.runtime import Sampling, SavedState, Session, load

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 40)]
RUNTIME = str(Path("liger_export", "runtime"))


@pytest.fixture
def session(package: Path) -> Session:
    return load(package)


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liger_export.runtime.dynamic.PREFILL_CHUNK", {"cpu": 16})


def interrupted_at(moment: int, call: Callable[[], object]) -> bool:
    """Run a call and raise KeyboardInterrupt at a bytecode of the runtime. Returns False if the call ended before."""
    left = moment

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if RUNTIME not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def moments(count: int) -> Iterator[int]:
    """Moments from the first bytecode on, close together at first and then at random."""
    random, moment = np.random.default_rng(count), 0
    while True:
        moment += int(random.integers(1, count))
        yield moment


def states_by_position(session: Session, tokens: list[int]) -> dict[int, dict[str, np.ndarray]]:
    session.reset()
    states = {0: session.state().tensors}
    for token in tokens:
        session.step(token)
        states[session.position] = session.state().tensors
    session.reset()
    return states


def state_or_none(session: Session) -> SavedState | None:
    """The state, or None if the session is unusable. All calls agree on that."""
    try:
        return session.state()
    except InputError:
        pass
    calls: list[Callable[[], object]] = [
        session.state,
        lambda: session.position,
        lambda: session.length,
        lambda: session.step(1),
        lambda: session.all_logits([1]),
        lambda: session.fork(),
        lambda: next(session.generate("a")),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"was interrupted.*reset, or load_state"):
            call()
    return None


def assert_close(measured: SavedState, states: dict[int, dict[str, np.ndarray]]) -> None:
    for name, tensor in states[measured.position].items():
        np.testing.assert_allclose(measured.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def check_interrupted_prefills(session: Session, tokens: list[int], spacing: int) -> None:
    """Interrupt ``prefill`` at many moments: the session is as before or as after the call, or refuses until reset."""
    states, expected = states_by_position(session, tokens), session.prefill(tokens)
    kept = {0: 0, len(tokens): 0, None: 0}
    for moment in moments(spacing):
        session.reset()
        if not interrupted_at(moment, lambda: session.prefill(tokens)):
            break
        state = state_or_none(session)
        kept[None if state is None else state.position] += 1  # KeyError in between
        if state is not None:
            assert_close(state, states)
        session.reset()
        np.testing.assert_array_equal(session.prefill(tokens), expected)
    assert kept[0]
    assert kept[None] > 3


def test_an_interrupted_prefill_is_undone_complete_or_refused(session: Session) -> None:
    check_interrupted_prefills(session, TOKENS, spacing=60)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3, repetition_penalty=1.1)])
def test_an_interrupted_generation_keeps_all_tokens_it_chose_or_is_refused(
    session: Session, sampling: Sampling
) -> None:
    ids = session.tokenizer.encode("def f").ids
    whole = "".join(session.generate("def f", max_new_tokens=4, sampling=sampling))
    session.reset()
    usable = 0
    for moment in moments(90):
        session.reset()
        pieces = session.generate("def f", max_new_tokens=4, sampling=sampling)
        if not interrupted_at(moment, lambda pieces=pieces: list(pieces)):  # type: ignore[misc]
            break
        if state_or_none(session) is not None:
            usable += 1
            assert session.position in (0, *range(len(ids), len(ids) + 4))
            assert session.length in (0, *range(len(ids) + 1, len(ids) + 5))
            assert whole.endswith("".join(pieces))  # empty, unless the interrupt came before or after the work
            session.step(1)
        session.reset()
        assert "".join(session.generate("def f", max_new_tokens=4, sampling=sampling)) == whole
    assert usable


def test_load_state_makes_an_interrupted_session_usable(session: Session) -> None:
    session.prefill(TOKENS[:9])
    saved, expected = session.state(), session.step(5)
    refused = 0
    for moment in moments(90):
        session.load_state(saved)
        if not interrupted_at(moment, lambda: session.prefill(TOKENS)):
            break
        refused += state_or_none(session) is None
        with pytest.raises(InputError, match=r"past_key_values\.0"):
            session.load_state(SavedState(3, {}))
        if refused:
            state_or_none(session)
        session.load_state(saved)
        np.testing.assert_array_equal(session.step(5), expected)
    assert refused


@pytest.mark.parametrize("replaces", [Session.reset, lambda session: session.load_state(session.fork().state())])
def test_an_interrupted_replacement_can_be_repeated(session: Session, replaces: Callable[[Session], None]) -> None:
    expected = session.prefill(TOKENS)
    for moment in moments(40):
        session.reset()
        session.prefill(TOKENS[:9])
        if not interrupted_at(moment, lambda: replaces(session)):
            break
        state_or_none(session)
        session.reset()
        np.testing.assert_array_equal(session.prefill(TOKENS), expected)


def test_an_error_of_the_graph_makes_the_session_unusable(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    expected = session.prefill(TOKENS)
    session.reset()
    with monkeypatch.context() as broken:
        broken.setattr(session.executor.model, "run_with_iobinding", fail)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="out of memory"):
            session.prefill(TOKENS)
    assert state_or_none(session) is None
    session.reset()
    np.testing.assert_array_equal(session.prefill(TOKENS), expected)


def test_another_thread_is_refused_and_changes_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_and_read(session)
    inside, go_on = threading.Event(), threading.Event()
    read, results = session.executor.read, []

    def slow(tokens: np.ndarray) -> None:
        inside.set()
        assert go_on.wait(60)
        read(tokens)

    monkeypatch.setattr(session.executor, "read", slow)
    first = threading.Thread(target=lambda: results.append(session.prefill(TOKENS)))
    first.start()
    assert inside.wait(60)
    calls: list[Callable[[], object]] = [
        lambda: session.step(1),
        lambda: session.all_logits([1]),
        lambda: session.generate("a"),
        lambda: session.sample_tokens(2, Sampling()),
        session.state,
        session.fork,
        session.reset,
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"in use by another thread.*fork"):
            call()
    go_on.set()
    first.join()
    np.testing.assert_array_equal(results[0], expected)
    assert session.position == len(TOKENS)


def load_and_read(session: Session) -> np.ndarray:
    expected = session.prefill(TOKENS)
    session.reset()
    return expected


def test_a_second_generation_is_refused_until_the_first_ends(session: Session) -> None:
    expected = list(session.generate("def f", max_new_tokens=6))
    session.reset()
    first = session.generate("def f", max_new_tokens=6)
    pieces = [next(first)]
    calls: list[Callable[[], object]] = [
        lambda: session.generate("x"),
        lambda: session.prefill(TOKENS),
        lambda: session.step(1),
        lambda: session.all_logits(TOKENS),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"unfinished generation.*close"):
            call()
    pieces += first
    assert pieces == expected
    assert session.generate("x")


def test_a_state_and_a_fork_may_be_taken_between_two_pieces(session: Session) -> None:
    expected = list(session.generate("def f", max_new_tokens=6))
    session.reset()
    pieces = session.generate("def f", max_new_tokens=6)
    first, fork = next(pieces), session.fork()
    assert [first, *pieces] == expected
    assert fork.length < session.length


@pytest.mark.parametrize("release", ["close", "collect", "with"])
def test_an_unfinished_generation_releases_the_session(session: Session, release: str) -> None:
    pieces = session.generate("def f", max_new_tokens=6)
    next(pieces)
    if release == "close":
        pieces.close()
        assert list(pieces) == []
    elif release == "with":
        with pieces:
            pass
    else:
        del pieces
        gc.collect()
    session.step(1)


@pytest.mark.parametrize("replaces", [Session.reset, lambda session: session.load_state(session.state())])
def test_a_generation_whose_session_moved_on_is_refused(session: Session, replaces: Callable[[Session], None]) -> None:
    pieces = session.generate("def f", max_new_tokens=6)
    next(pieces)
    replaces(session)
    session.generate("another")
    with pytest.raises(InputError, match="was reset or loaded a state"):
        list(pieces)


def test_two_threads_of_one_generation_lose_no_text(session: Session) -> None:
    whole = "".join(session.generate("def f", max_new_tokens=100))
    session.reset()
    pieces, found, refused = session.generate("def f", max_new_tokens=100), [], []

    def read() -> None:
        while True:
            try:
                found.append(next(pieces))
            except StopIteration:
                return
            except InputError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("".join(found)) == sorted(whole)
    assert all("another thread" in error for error in refused)
