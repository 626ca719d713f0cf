"""The continuation that ``Session.generate`` returns: pieces with tokens, progress, cancellation, async iteration."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from liger_export.errors import InputError
from liger_export.runtime import Sampling, Session, load
from tests.recorder import Recorder

LONG = [int(token) for token in np.random.default_rng(0).integers(1, 250, 300)]  # three chunks


@pytest.fixture
def session(package: Path) -> Session:
    return load(package)


def test_pieces_are_text_that_has_tokens_with_log_probabilities(session: Session) -> None:
    pieces = list(session.generate("def f", max_new_tokens=6, top_logprobs=3))
    assert pieces[-1].finish_reason == "length"
    tokens = [token for piece in pieces for token in piece.tokens]
    other = anew(session)
    logits = other.prefill(other.encode("def f"))
    for token in tokens:
        wide = logits.astype(np.float64)
        expected = wide - np.log(np.exp(wide).sum())
        assert token.logprob == pytest.approx(expected[token.id], abs=1e-6)
        assert [each for each, _ in token.top] == np.argsort(-expected, kind="stable")[:3].tolist()
        logits = other.step(token.id)


def anew(session: Session) -> Session:
    other = session.fork()
    other.reset()
    return other


def test_every_setting_of_a_continuation_can_be_passed(session: Session) -> None:
    whole = list(session.generate("def f", max_new_tokens=5, ignore_eos=True))
    ids = [token for piece in whole for token in piece.token_ids]
    session.reset()
    (end,) = session.generate("def f", max_new_tokens=5, stop_token_ids=ids[:1])
    assert (end, end.finish_reason) == ("", "stop")
    session.reset()
    pieces = list(session.generate("def f", max_new_tokens=5, stop_token_ids=ids[:1], min_tokens=2))
    tokens = [token for piece in pieces for token in piece.token_ids]
    assert len(tokens) >= 2
    assert tokens[0] != ids[0]
    with pytest.raises(InputError, match="min_tokens is -1"):
        session.generate("def f", min_tokens=-1)


def test_progress_counts_the_tokens_of_a_long_prompt(session: Session) -> None:
    progress = Recorder()
    list(session.generate(LONG, max_new_tokens=3, progress=progress))
    assert [(done, total) for done, total, _ in progress.reports] == [(128, 300), (256, 300), (300, 300)]


def test_cancelling_ends_the_text_and_keeps_what_was_read(session: Session) -> None:
    expected = list(session.generate("def f", max_new_tokens=9, ignore_eos=True))
    session.reset()
    pieces = session.generate("def f", max_new_tokens=9, ignore_eos=True)
    first = [next(pieces), next(pieces)]
    pieces.cancel()  # as another thread may
    (last,) = pieces
    assert (last, last.finish_reason) == ("", "cancelled")
    count = sum(len(piece.tokens) for piece in first)
    rest = list(session.generate("", max_new_tokens=9 - count, ignore_eos=True))
    assert "".join(first + rest) == "".join(expected)


def test_cancelling_during_a_prompt_takes_effect_after_a_chunk(session: Session) -> None:
    class Cancelling(Recorder):
        def advance(self, count: int) -> None:
            super().advance(count)
            pieces.cancel()

    pieces = session.generate(LONG, progress=Cancelling())
    (last,) = pieces
    assert (last.finish_reason, session.position) == ("cancelled", 128)
    expected = anew(session)
    expected.prefill(LONG[:128])
    assert np.allclose(session.prefill(LONG[128:]), expected.prefill(LONG[128:]), atol=1e-5)


def test_it_can_be_read_in_an_event_loop(session: Session) -> None:
    sampling = Sampling(temperature=0.8, seed=2)
    expected = list(session.generate("def f", max_new_tokens=9, sampling=sampling))
    session.reset()

    async def read() -> list[str]:
        return [piece async for piece in session.generate("def f", max_new_tokens=9, sampling=sampling)]

    assert asyncio.run(read()) == expected
