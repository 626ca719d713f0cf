"""Many requests at once. The reference for each is a session that answers it alone."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.convert import convert
from liger_export.errors import BusyError, InputError, NotFiniteError
from liger_export.runtime import GenerationSettings, Request, Sampling, SavedState, Scheduler, Session, Stream, load
from liger_export.runtime.executor import Executor, Prediction, Tokens
from liger_export.runtime.record import digest_after
from liger_export.runtime.slots import Slots
from tests.plugins.sessions import needs_library

ENDLESS = GenerationSettings(max_new_tokens=100_000, ignore_eos=True)


@pytest.fixture(scope="module")
def fused_package(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scheduler") / "package"
    convert(liger_checkpoint, directory, lowering="fused")
    return directory


@pytest.fixture(scope="module", params=["stock", pytest.param("fused", marks=needs_library)])
def session(request: pytest.FixtureRequest, fused_package: Path) -> Session:
    return load(fused_package, lowering=request.param, device="cpu")


@pytest.fixture
def scheduler(session: Session) -> Iterator[Scheduler]:
    with Scheduler(session, slots=3, chunk=8) as scheduler:
        yield scheduler


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng(seed).integers(1, 250, length))


def request_of(text: int, length: int, count: int = 12, **sampling: Any) -> Request:
    return Request(prompt(text, length), GenerationSettings(max_new_tokens=count, sampling=Sampling(**sampling)))


def alone(session: Session, request: Request) -> tuple[str, list[int], str | None]:
    session.reset()
    settings = request.settings
    pieces = list(
        session.generate(
            request.prompt,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.sampling,
            stop=settings.stop,
            ignore_eos=settings.ignore_eos,
        )
    )
    return "".join(pieces), [token for piece in pieces for token in piece.token_ids], pieces[-1].finish_reason


def answer(stream: Stream) -> tuple[str, list[int], str | None]:
    pieces = list(stream)
    return "".join(pieces), [token for piece in pieces for token in piece.token_ids], pieces[-1].finish_reason


def test_answers_are_those_of_a_session_alone(session: Session, scheduler: Scheduler) -> None:
    requests = [
        request_of(0, 1),
        request_of(1, 30),
        request_of(2, 9, temperature=0.8, seed=3),
        request_of(3, 17, temperature=1.3, top_p=0.9, seed=4),
        request_of(4, 3, repetition_penalty=1.2),
        request_of(5, 40, count=0),
        request_of(6, 5, count=1),
        request_of(7, 8, frequency_penalty=1.0, logit_bias={9: 2.0}),
    ]
    streams = [scheduler.submit(request) for request in requests]
    for request, stream in zip(requests, streams, strict=True):
        assert answer(stream) == alone(session, request)
        assert (stream.prompt_tokens, stream.cached_tokens, stream.read_tokens) == (
            len(request.prompt),
            0,
            len(request.prompt),
        )


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_joins_and_cancels_change_no_answer(data: st.DataObject, session: Session) -> None:
    lengths = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=7))
    requests = [request_of(seed, length, data.draw(st.integers(1, 15))) for seed, length in enumerate(lengths)]
    with Scheduler(session, slots=data.draw(st.integers(1, 4)), chunk=data.draw(st.integers(1, 9))) as scheduler:
        streams = []
        for request in requests:
            streams.append(scheduler.submit(request))
            if data.draw(st.booleans()):
                next(data.draw(st.sampled_from(streams)), None)
            if data.draw(st.booleans()):
                data.draw(st.sampled_from(streams)).cancel()
        answers = [list(stream) for stream in streams]
    for request, stream, pieces in zip(requests, streams, answers, strict=True):
        text, _, reason = alone(session, request)
        assert "".join(pieces) in text
        if not stream.is_cancelled:
            assert stream.finish_reason == reason
            assert text.endswith("".join(pieces))


def test_a_running_stream_waits_for_at_most_one_chunk(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, read, step = [], Slots.read, Slots.step

    def counted_read(slots: Slots, row: Any, tokens: Tokens, temperature: float = 0.0) -> Prediction:
        calls.append(len(tokens))
        return read(slots, row, tokens, temperature)

    def counted_step(slots: Slots, *arguments: Any) -> list[Prediction]:
        calls.append(0)
        return step(slots, *arguments)

    monkeypatch.setattr(Slots, "read", counted_read)
    monkeypatch.setattr(Slots, "step", counted_step)
    with Scheduler(session, slots=3, chunk=8) as scheduler:
        first = scheduler.submit(Request(prompt(0, 3), ENDLESS))
        next(first)
        del calls[:]
        others = [scheduler.submit(request_of(seed, 45, count=1)) for seed in (1, 2)]
        assert [answer(stream)[2] for stream in others] == ["length", "length"]
        first.cancel()
    reads = [call for call in calls if call]
    assert sorted(reads) == [5, 5] + 10 * [8]
    between = "".join("r" if call else "s" for call in calls)
    assert "rr" not in between
    assert between.count("s") >= len(reads) - 1


def test_cancelling_frees_the_slot_for_the_next_request(session: Session) -> None:
    with Scheduler(session, slots=1) as scheduler:
        first = scheduler.submit(Request(prompt(0, 3), ENDLESS))
        next(first)
        second = scheduler.submit(request_of(1, 4))
        third = scheduler.submit(request_of(2, 4))
        third.cancel()
        first.cancel()
        assert list(first)[-1].finish_reason == "cancelled"
        assert answer(second) == alone(session, request_of(1, 4))
        assert answer(third) == ("", [], "cancelled")
        assert (scheduler.statistics.active, scheduler.statistics.requests) == (0, 2)


def test_too_many_waiting_requests_are_refused(session: Session) -> None:
    with Scheduler(session, slots=2, queue_length=1) as scheduler:
        running = scheduler.submit_several(Request(prompt(0, 3), ENDLESS), 2)
        for stream in running:
            next(stream)
        waiting = scheduler.submit(request_of(1, 4))
        with pytest.raises(BusyError, match="Too many requests"):
            scheduler.submit(request_of(2, 4))
        assert scheduler.statistics.queued == 1
        running[0].cancel()
        assert answer(waiting)[2] == "length"


def test_closing_lets_streams_end_or_cancels_them(session: Session) -> None:
    scheduler = Scheduler(session, slots=2)
    short = scheduler.submit(request_of(0, 4, count=5))
    scheduler.close(grace=60)
    assert answer(short) == alone(session, request_of(0, 4, count=5))
    scheduler = Scheduler(session, slots=1)
    endless, queued = scheduler.submit_several(Request(prompt(0, 3), ENDLESS), 2)
    scheduler.close()
    assert [answer(stream)[2] for stream in (endless, queued)] == ["cancelled", "cancelled"]
    with pytest.raises(InputError, match="scheduler is closed"):
        scheduler.submit(request_of(0, 4))


class Known:
    """Every state that a scheduler has added. See ``PrefixStates``."""

    def __init__(self) -> None:
        self.states: dict[tuple[int, ...], SavedState] = {}

    def longest(self, tokens: Tokens) -> tuple[int, SavedState] | None:
        prefixes = (tuple(tokens[:length].tolist()) for length in range(len(tokens), 0, -1))
        return next(((len(each), self.states[each]) for each in prefixes if each in self.states), None)

    def add(self, tokens: Tokens, state: SavedState) -> None:
        self.states[tuple(tokens.tolist())] = state

    def shared(self, tokens: Tokens) -> int:
        text = tuple(tokens.tolist())
        lengths = range(len(text), 0, -1)
        return next((n for n in lengths if any(known[:n] == text[:n] for known in self.states)), 0)


def test_a_conversation_goes_on_from_the_state_after_its_last_turn(session: Session) -> None:
    known = Known()
    with Scheduler(session, slots=2, prefix_states=known) as scheduler:
        first = request_of(0, 20, temperature=0.9, seed=1)
        _, tokens, _ = answer(scheduler.submit(first))
        assert set(known.states) == {first.prompt, (*first.prompt, *tokens[:-1])}
        again = scheduler.submit(first)  # chooses from the logits of the stored state
        assert answer(again)[1] == tokens
        assert again.cached_tokens == 20
        second = request_of(0, 0)
        second = replace(second, prompt=(*first.prompt, *tokens, *prompt(5, 7)))
        stream = scheduler.submit(second)
        assert answer(stream) == alone(session, second)
        assert stream.cached_tokens == 20 + len(tokens) - 1
        assert scheduler.statistics.cached_tokens == 20 + stream.cached_tokens


def test_the_states_it_adds_are_those_that_a_session_saves(session: Session) -> None:
    known = Known()
    with Scheduler(session, slots=2, prefix_states=known) as scheduler:
        answer(scheduler.submit(request_of(0, 20)))
    for tokens, state in known.states.items():
        session.reset()
        session.prefill(list(tokens))
        expected = session.state()
        assert (state.position, state.model, state.pending) == (len(tokens), expected.model, ())
        assert (state.recent, state.digest) == (expected.recent, expected.digest)
        assert state.digest == digest_after("", np.array(tokens))
        assert np.array_equal(cast(Any, state.seen), cast(Any, expected.seen))
        assert np.allclose(cast(Any, state.logits), cast(Any, expected.logits), atol=1e-5)
        session.load_state(state)
        assert "".join(session.generate("", max_new_tokens=5))


def test_the_first_piece_does_not_wait_until_the_state_is_stored(session: Session) -> None:
    was_read, in_time = Event(), []

    class Slow(Known):
        def add(self, tokens: Tokens, state: SavedState) -> None:
            in_time.append(was_read.wait(5))
            super().add(tokens, state)

    request = request_of(0, 20)
    with Scheduler(session, slots=1, prefix_states=Slow()) as scheduler:
        stream = scheduler.submit(request)
        first = next(stream)
        was_read.set()
        assert first + "".join(stream) == alone(session, request)[0]
    assert in_time == [True, True]


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_state_where_two_prompts_part_is_stored_for_the_third(session: Session, chunk: int | None) -> None:
    """Such as after a long system prompt, which no prompt ends with."""
    start = prompt(0, 100)
    requests = [replace(request_of(0, 4), prompt=(*start, *prompt(seed, 20))) for seed in (1, 2, 3)]
    known = Known()
    with Scheduler(session, slots=2, prefix_states=known, chunk=chunk) as scheduler:
        cached = []
        for request in requests:
            stream = scheduler.submit(request)
            assert answer(stream) == alone(session, request)
            cached.append(stream.cached_tokens)
    assert cached == [0, 0, 100]
    assert start in known.states


def test_a_short_common_start_is_not_worth_a_state(session: Session) -> None:
    known = Known()
    with Scheduler(session, slots=2, prefix_states=known) as scheduler:
        for seed in (1, 2):
            request = replace(request_of(0, 4), prompt=(*prompt(0, 20), *prompt(seed, 20)))
            answer(scheduler.submit(request))
    assert prompt(0, 20) not in known.states


def test_a_wrong_state_ends_only_the_request_that_it_is_for(session: Session) -> None:
    class Wrong(Known):
        def longest(self, tokens: Tokens) -> tuple[int, SavedState] | None:
            known = super().longest(tokens)
            return known and (known[0], replace(known[1], position=known[0] - 1))

    with Scheduler(session, slots=2, prefix_states=Wrong()) as scheduler:
        assert answer(scheduler.submit(request_of(0, 9)))[2] == "length"
        with pytest.raises(InputError, match="does not fit the first 9 tokens"):
            list(scheduler.submit(request_of(0, 9)))
        assert answer(scheduler.submit(request_of(1, 9))) == alone(session, request_of(1, 9))


def test_logits_that_are_not_finite_end_only_their_stream(session: Session) -> None:
    class Poisoned(Known):
        def longest(self, tokens: Tokens) -> tuple[int, SavedState] | None:
            if tuple(tokens[:3]) != prompt(0, 3):
                return None
            session.reset()
            session.prefill(tokens[:3].tolist())
            state = session.state()
            return 3, replace(state, tensors={name: tensor * np.nan for name, tensor in state.tensors.items()})

    with Scheduler(session, slots=3, prefix_states=Poisoned()) as scheduler:
        neighbours = [scheduler.submit(request_of(seed, 6, count=30)) for seed in (1, 2)]
        with pytest.raises(NotFiniteError, match="layer 0"):
            list(scheduler.submit(request_of(0, 5)))
        neighbours.append(scheduler.submit(request_of(3, 6, count=30)))
        answers = [answer(stream) for stream in neighbours]
    assert answers == [alone(session, request_of(seed, 6, count=30)) for seed in (1, 2, 3)]


def test_several_answers_read_their_prompt_once(session: Session, scheduler: Scheduler) -> None:
    request = request_of(0, 20, temperature=1.0, seed=7)
    streams = scheduler.submit_several(request, 5)
    seeded = [request_of(0, 20, temperature=1.0, seed=7 + index) for index in range(5)]
    assert [answer(stream) for stream in streams] == [alone(session, each) for each in seeded]
    assert [stream.cached_tokens for stream in streams] == [0, 20, 20, 20, 20]


def test_if_the_first_of_several_answers_is_cancelled_another_one_reads_the_prompt(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reading, may_go_on, read = Event(), Event(), Slots.read

    def slow_read(*arguments: Any) -> Prediction:
        is_reading.set()
        may_go_on.wait(10)
        return read(*arguments)

    monkeypatch.setattr(Slots, "read", slow_read)
    with Scheduler(session, slots=1, chunk=4) as scheduler:
        streams = scheduler.submit_several(request_of(0, 20), 3)
        is_reading.wait(10)
        streams[0].cancel()
        may_go_on.set()
        assert [answer(stream)[2] for stream in streams] == ["cancelled", "length", "length"]


def test_a_failing_graph_ends_every_stream(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    scheduler = Scheduler(session, slots=2)
    monkeypatch.setattr(Slots, "step", fail)
    streams = scheduler.submit_several(request_of(0, 4), 3)
    for stream in streams:
        with pytest.raises(RuntimeError, match="out of memory"):
            list(stream)
    with pytest.raises(InputError, match="closed"):
        scheduler.submit(request_of(0, 4))
    scheduler.close()


def test_streams_can_be_read_in_an_event_loop(session: Session, scheduler: Scheduler) -> None:
    async def read(request: Request) -> str:
        return "".join([piece async for piece in scheduler.submit(request)])

    async def read_all() -> list[str]:
        return await asyncio.gather(*(read(request_of(seed, 5)) for seed in range(4)))

    assert asyncio.run(read_all()) == [alone(session, request_of(seed, 5))[0] for seed in range(4)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Request(()), "no tokens"),
        (Request((1, 10_000)), "Token id 10000 is outside"),
        (Request((1,), GenerationSettings(stop_token_ids=(10_000,))), "stop token 10000 is outside"),
        (Request((1,), GenerationSettings(sampling=Sampling(logit_bias={10_000: 1.0}))), "token 10000, outside"),
    ],
)
def test_a_wrong_request_is_refused_when_it_is_submitted(scheduler: Scheduler, wrong: Request, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scheduler.submit(wrong)


@pytest.mark.parametrize("values", [{"slots": 0}, {"queue_length": 0}, {"chunk": 0}, {"slots": 1.5}])
def test_a_wrong_number_is_refused(session: Session, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be a positive integer"):
        Scheduler(session, **values)


def test_an_engine_directory_is_refused() -> None:
    with pytest.raises(InputError, match="one sequence at a time"):
        Slots.of(cast(Executor, object()), 2)
