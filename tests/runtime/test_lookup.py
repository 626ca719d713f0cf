"""Prompt lookup: the tokens and the state are those of the loop without guesses."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liger_export.convert import convert
from liger_export.errors import InputError
from liger_export.linearize import LinearizeSettings
from liger_export.precision import Precision
from liger_export.runtime import GenerationSettings, Request, Sampling, SavedState, Scheduler, Session, load
from liger_export.runtime.dynamic import EXACT_TOKENS
from liger_export.runtime.executor import Logits, Tokens
from liger_export.runtime.lookup import Lookup
from liger_export.runtime.record import TextRecord
from tests.plugins.sessions import needs_library
from tests.tiny import WIDE, write_liger

FEW = dict.fromkeys(range(1, 5), 12.0)  # a text of few tokens, in which some guesses are right
SAMPLINGS = [
    Sampling(),
    Sampling(logit_bias=FEW),
    Sampling(logit_bias=FEW, repetition_penalty=1.2, temperature=1.0, seed=0),
    Sampling(logit_bias=FEW, frequency_penalty=1.0, temperature=0.5, seed=3),
    Sampling(repetition_penalty=1.5),
    Sampling(temperature=0.3, seed=1),
    Sampling(temperature=0.8, top_k=20, presence_penalty=0.5, seed=2),
]
REPEATED = [3, 5, 8, 13, 21, 34] * 5


class Scripted:
    """A model that continues a script, and other texts with a token that the script does not have."""

    exact, lowering, device, chunk = EXACT_TOKENS, "fused", "cpu", 128

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.position = self.ahead_of = 0
        self.lengths: list[int] = []

    def ahead(self) -> "Scripted":
        return self

    def read(self, tokens: Tokens) -> None:
        assert tokens.tolist() == self.script[self.position :][: len(tokens)]
        self.lengths.append(len(tokens))
        self.position += len(tokens)

    def read_ahead(self, tokens: Tokens, keep: int) -> Logits:
        self.lengths.append(len(tokens))
        self.ahead_of = len(tokens)
        known = self.script[self.position :]
        nexts = [known[i + 1] if tokens[: i + 1].tolist() == known[: i + 1] else 0 for i in range(len(tokens))]
        return np.eye(8, dtype=np.float32)[nexts[-keep:]]

    def adopt(self) -> None:
        self.position += self.ahead_of

    def last_logits(self) -> Logits:
        return np.eye(8, dtype=np.float32)[self.script[self.position]]


@settings(deadline=None, max_examples=80)
@given(
    blocks=st.lists(st.lists(st.integers(1, 7), min_size=40, max_size=80), min_size=1, max_size=3),
    order=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 80)), min_size=6, max_size=12),
    most=st.integers(1, 30),
)
def test_a_call_has_no_more_tokens_than_are_exact(
    blocks: list[list[int]], order: list[tuple[int, int]], most: int
) -> None:
    script = [token for block, length in order for token in blocks[block % len(blocks)][:length]] + [1] * 40
    model = Scripted(script)
    text = TextRecord(model, 8)  # type: ignore[arg-type]
    text.read(np.array(script[:2]))
    text.pending = [script[2]]
    lookup = Lookup(text, script[:3], most)
    chosen = script[:3]
    while len(chosen) < len(script) - 20:
        prediction = lookup.predict()
        if prediction is None:
            text.read_pending(len(text.pending))
            prediction = text.prediction
        assert prediction is not None
        chosen.append(int(prediction.last_logits().argmax()))
        text.pending.append(chosen[-1])
        lookup.follow(chosen[-1], is_last=len(chosen) == len(script) - 20)
    assert chosen == script[: len(chosen)]
    assert (model.position, text.pending) == (len(chosen) - 1, chosen[-1:])
    assert max(model.lengths) <= EXACT_TOKENS


@pytest.fixture(scope="module", params=["fp32", "int4"])
def sessions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Session]:
    folder = tmp_path_factory.mktemp("lookup")
    checkpoint = write_liger(folder / "liger", **WIDE)
    precision = Precision(weights=request.param, block_size=32)
    convert(checkpoint, folder / "package", lowering="fused", precision=precision)
    return load(folder / "package"), load(folder / "package")


def same(first: SavedState, second: SavedState) -> bool:
    fields = ("position", "pending", "recent", "digest")
    return (
        all(getattr(first, name) == getattr(second, name) for name in fields)
        and np.array_equal(first.seen, second.seen)  # type: ignore[arg-type]
        and all(np.array_equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    )


@needs_library
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    lookup=st.integers(1, 20),
    count=st.integers(1, 60),
    sampling=st.sampled_from(SAMPLINGS),
    end=st.lists(st.integers(0, 259), max_size=30),
)
def test_tokens_and_state_are_those_without_guesses(
    sessions: tuple[Session, Session], prompt: list[int], lookup: int, count: int, sampling: Sampling, end: list[int]
) -> None:
    plain, guessing = sessions
    for session in sessions:
        session.reset()
    for text in (prompt, [*prompt, 7], ""):  # a later call continues the text
        options = {"max_new_tokens": count, "sampling": sampling, "stop_token_ids": end}
        expected = list(plain.generate(text, **options))  # type: ignore[arg-type]
        found = list(guessing.generate(text, lookup=lookup, **options))  # type: ignore[arg-type]
        assert "".join(found) == "".join(expected)
        assert [token for piece in found for token in piece.tokens] == [t for piece in expected for t in piece.tokens]
        assert found[-1].finish_reason == expected[-1].finish_reason
        assert same(guessing.state(), plain.state())


@needs_library
def test_a_text_that_is_left_in_the_middle_goes_on_in_the_same_way(sessions: tuple[Session, Session]) -> None:
    for stopped_after in range(1, 12):
        texts = []
        for session, lookup in zip(sessions, (0, 9), strict=True):
            session.reset()
            pieces = session.generate(REPEATED, max_new_tokens=40, ignore_eos=True, top_logprobs=0, lookup=lookup)
            chosen: list[int] = []
            while len(chosen) < stopped_after:
                chosen += [token.id for token in next(pieces).tokens]
            pieces.close()
            saved = session.state()
            chosen += [
                t.id for piece in session.generate([9, 9], max_new_tokens=9, ignore_eos=True) for t in piece.tokens
            ]
            session.load_state(saved)
            chosen += [t.id for piece in session.generate("", max_new_tokens=9, ignore_eos=True) for t in piece.tokens]
            texts.append((chosen, session.position))
        assert texts[0] == texts[1]


@needs_library
def test_right_guesses_are_read_in_one_call(sessions: tuple[Session, Session], monkeypatch: pytest.MonkeyPatch) -> None:
    _, session = sessions
    session.reset()
    graph, lengths = session.executor.graph, []  # type: ignore[attr-defined]
    run, position = graph.run, session.position
    monkeypatch.setattr(graph, "run", lambda call: (lengths.append(1), run(call)))
    always = Sampling(logit_bias={5: 100.0})
    pieces = list(session.generate([1, 5, 5, 5, 5], max_new_tokens=60, sampling=always, lookup=15))
    assert [token.id for piece in pieces for token in piece.tokens] == [5] * 60
    assert session.position - position == 64
    assert len(lengths) < 20


@needs_library
def test_buffers_stay_where_they_are(sessions: tuple[Session, Session]) -> None:
    _, session = sessions
    session.reset()
    list(session.generate(REPEATED, max_new_tokens=20, lookup=8))
    addresses = session.buffer_addresses()
    list(session.generate(REPEATED, max_new_tokens=50, lookup=15))
    assert session.buffer_addresses() == addresses


@needs_library
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "int4", "int8"])
def test_calls_of_several_tokens_are_exact(precision: str, threads: int, tmp_path: Path) -> None:
    sizes = {**WIDE, "hidden_size": 256, "intermediate_size": 512}
    checkpoint = write_liger(tmp_path / "liger", **sizes)
    convert(checkpoint, tmp_path / "package", lowering="fused", precision=Precision(weights=precision, block_size=32))
    session = load(tmp_path / "package", threads=threads)
    tokens = np.random.default_rng(0).integers(1, 260, 96).tolist()
    steps = [session.step(token) for token in tokens]
    expected = session.state()
    for count in range(2, EXACT_TOKENS + 1):
        session.reset()
        rows = [session.all_logits(tokens[start : start + count]) for start in range(0, len(tokens), count)]
        assert np.array_equal(np.concatenate(rows), steps)
        assert same(session.state(), expected)


@needs_library
def test_graphs_that_round_differently_are_refused(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", settings=LinearizeSettings(keep_softmax_every=2))
    convert(checkpoint, tmp_path / "package", lowering="fused")
    for session in (load(tmp_path / "package"), load(tmp_path / "package", lowering="stock")):
        with pytest.raises(InputError, match="other rounding") as refused:
            session.generate([1, 2, 3], lookup=4)
        assert "lookup=0" in refused.value.fix
        assert session.position == 0


@needs_library
def test_a_scheduler_and_a_bad_number_are_refused(sessions: tuple[Session, Session]) -> None:
    with pytest.raises(InputError, match="lookup is -1"):
        GenerationSettings(lookup=-1)
    with Scheduler(sessions[0]) as scheduler, pytest.raises(InputError, match="one token of each sequence"):
        scheduler.submit(Request((1, 2), GenerationSettings(lookup=4)))
