"""Tokens chosen from the top logits equal those that the same draws choose from all logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liger_export.errors import NotFiniteError
from liger_export.runtime.sampling import Sampler, Sampling
from liger_export.runtime.top_logits import TopLogits
from tests.top_logits import Logits, naive_top_logits, tied_logits

VOCAB, TOP = 60, 8  # stand for 128k and 256, but small enough for every case to occur

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-40, 1e-6, 0.05, 0.7, 1.0, 3.0, 1e5]),
    top_k=st.sampled_from([0, 1, 3, 8, 9, 30, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 1e-6, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.05, 1.3, 10.0, 0.8]),
    seed=st.integers(0, 2**32 - 1),
)
every_logits = st.one_of(
    st.builds(
        lambda seed, scale: np.random.default_rng(seed).normal(0, scale, VOCAB).astype(np.float32),
        st.integers(0, 2**32 - 1),
        st.sampled_from([0.01, 1.0, 5.0, 40.0, 1e30]),
    ),
    st.builds(tied_logits, st.integers(0, 2**32 - 1), st.just((VOCAB,)), st.sampled_from([1, 2, 5, 20])),
)


def unread() -> Logits:
    raise AssertionError("the logits were read")


def top_logits_of(logits: Logits, sampler: Sampler, error: float) -> TopLogits | None:
    """Top logits as the operator gives them with a relative error in its sum; None if the sampler requests none."""
    temperature = sampler.top_logits_temperature
    if temperature == 0:
        return None
    row = naive_top_logits(logits, TOP, temperature)
    row[0] *= 1 + error
    return TopLogits.from_output(row, VOCAB, temperature)


@settings(max_examples=600, deadline=None)
@given(every_logits, samplings, st.sets(st.integers(0, VOCAB - 1)), st.sampled_from([-9e-6, 0.0, 9e-6]))
def test_top_logits_choose_the_token_that_all_logits_choose(
    logits: Logits, sampling: Sampling, text: set[int], error: float
) -> None:
    seen = np.zeros(VOCAB, dtype=np.bool_)
    seen[list(text)] = True
    whole, few = Sampler(sampling, seen), Sampler(sampling, seen)
    for _ in range(8):
        top = top_logits_of(logits, few, error)
        expected = whole.choose(logits)
        assert (few.choose(logits) if top is None else few.choose_from_top(top, lambda: logits)) == expected


@settings(max_examples=200, deadline=None)
@given(every_logits, samplings)
def test_a_draw_follows_the_distribution(logits: Logits, sampling: Sampling) -> None:
    """Weights count from the largest logit down, and each draw falls within the chosen token's probability."""
    sampler = Sampler(sampling, np.zeros(VOCAB, dtype=np.bool_))
    if sampling.temperature == 0:
        return
    probabilities = sampler.probabilities(logits)
    order = np.argsort(-logits, kind="stable")
    draws = np.random.default_rng(sampling.seed)
    for _ in range(8):
        below = np.cumsum(probabilities[order]) - draws.random()
        chosen = order.tolist().index(sampler.choose(logits))
        assert probabilities[order[chosen]] > 0
        assert below[chosen] > -1e-9
        assert below[chosen] - probabilities[order[chosen]] < 1e-9


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 1.0, "min_p": 0.3},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.1},
        {"temperature": 0.0, "repetition_penalty": 1.2},
        {"temperature": 1.0, "top_k": 3, "repetition_penalty": 1.2},
    ],
)
def test_a_choice_within_the_top_logits_reads_no_others(settings_: dict[str, float]) -> None:
    logits = -np.sqrt(np.arange(VOCAB, dtype=np.float32)) * 3 + 4
    seen = np.zeros(VOCAB, dtype=np.bool_)
    seen[[0, 30]] = True
    sampler = Sampler(Sampling(**settings_, seed=0), seen)  # type: ignore[arg-type]
    for _ in range(50):
        top = top_logits_of(logits, sampler, 0.0)
        assert top is not None
        assert sampler.choose_from_top(top, unread) < TOP


def test_a_draw_beyond_the_top_logits_reads_all_logits_once() -> None:
    logits, read = np.zeros(VOCAB, dtype=np.float32), []
    sampler = Sampler(Sampling(temperature=1.0, seed=0), np.zeros(VOCAB, dtype=np.bool_))

    def read_logits() -> Logits:
        read.append(1)
        return logits

    top = top_logits_of(logits, sampler, 0.0)
    assert top is not None
    tokens = [sampler.choose_from_top(top, read_logits) for _ in range(600)]
    assert len(read) == sum(token >= TOP for token in tokens)
    assert abs(len(read) / 600 - (1 - TOP / VOCAB)) < 0.06


def test_large_vocabularies_are_sorted_only_as_far_as_needed() -> None:
    logits = np.random.default_rng(0).normal(0, 1, 20000).astype(np.float32)
    sampler = Sampler(Sampling(temperature=1.5, seed=0), np.zeros(20000, dtype=np.bool_))
    probabilities, order = sampler.probabilities(logits), np.argsort(-logits, kind="stable")
    draws = np.random.default_rng(0)
    for _ in range(30):
        place = int(np.searchsorted(np.cumsum(probabilities[order]), draws.random(), side="right"))
        assert sampler.choose(logits) == order[place]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0, seed=0), Sampling(repetition_penalty=1.2)], ids=str)
def test_top_logits_that_are_not_finite_are_refused(value: float, sampling: Sampling) -> None:
    row = naive_top_logits(np.zeros(VOCAB, dtype=np.float32), TOP, 1.0)
    row[0], row[1] = np.nan, value  # the sum, and the largest logit: NaN sorts first
    top = TopLogits.from_output(row, VOCAB, 1.0)
    with pytest.raises(NotFiniteError, match="not finite"):
        Sampler(sampling, np.zeros(VOCAB, dtype=np.bool_)).choose_from_top(top, unread)
