from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from liger_export.errors import InputError
from liger_export.runtime.executor import StoredPrediction
from liger_export.runtime.sampling import Sampler, Sampling

Logits = npt.NDArray[np.float32]
logits_strategy = arrays(np.float32, st.integers(1, 40), elements=st.floats(-20, 20, width=32))


def unseen(vocab_size: int) -> npt.NDArray[np.bool_]:
    return np.zeros(vocab_size, dtype=np.bool_)


def probabilities(logits: Logits, **settings: float) -> npt.NDArray[np.float64]:
    sampling = Sampling(**{"temperature": 1.0, **settings})  # type: ignore[arg-type]
    return Sampler(sampling, unseen(len(logits))).probabilities(logits)


@given(logits_strategy)
def test_greedy_takes_the_most_likely(logits: Logits) -> None:
    assert Sampler(Sampling(), unseen(len(logits))).choose(logits) == logits.argmax()


@given(logits_strategy, st.floats(0.1, 3))
def test_temperature_without_filters_is_a_softmax(logits: Logits, temperature: float) -> None:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    np.testing.assert_allclose(probabilities(logits, temperature=temperature), weights / weights.sum(), atol=1e-12)


@given(logits_strategy, st.integers(1, 50))
def test_top_k_keeps_the_k_most_likely(logits: Logits, k: int) -> None:
    kept = probabilities(logits, top_k=k) > 0
    kth = np.sort(logits)[::-1][min(k, len(logits)) - 1]
    assert np.array_equal(kept, logits >= kth)


@given(logits_strategy, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(logits: Logits, p: float) -> None:
    full, kept = probabilities(logits), probabilities(logits, top_p=p) > 0
    mass = full[kept].sum()
    assert mass >= p - 1e-9
    assert mass - full[kept].min() < p + 1e-9


@given(logits_strategy, st.floats(0.01, 1))
def test_min_p_keeps_those_likely_enough(logits: Logits, p: float) -> None:
    full = probabilities(logits)
    assert np.array_equal(probabilities(logits, min_p=p) > 0, full >= p * full.max())


@given(logits_strategy, st.integers(0, 2**32 - 1))
def test_same_seed_chooses_the_same(logits: Logits, seed: int) -> None:
    samplers = [Sampler(Sampling(temperature=1.5, seed=seed), unseen(len(logits))) for _ in range(2)]
    first, second = ([sampler.choose(logits) for _ in range(10)] for sampler in samplers)
    assert first == second


def test_choices_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=0), unseen(3))
    counts = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


def test_repetition_penalty_lowers_seen_tokens_only() -> None:
    logits, seen = np.array([2.0, 1.9, -1.0], dtype=np.float32), unseen(3)
    sampler = Sampler(Sampling(repetition_penalty=1.2), seen)
    assert sampler.choose(logits) == 0
    seen[0] = True
    assert sampler.choose(logits) == 1
    sampler = Sampler(Sampling(repetition_penalty=4.0), np.array([True, True, False]))
    assert sampler.choose(np.array([-1.0, -1.0, -2.0], dtype=np.float32)) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 2},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, seed=0), Sampling(repetition_penalty=1.2)], ids=str
)
def test_logits_that_are_not_finite_are_refused_by_every_way_to_choose(value: float, sampling: Sampling) -> None:
    logits = np.zeros(300, dtype=np.float32)
    logits[7] = value
    sampler = Sampler(sampling, np.zeros(300, dtype=np.bool_))
    with pytest.raises(InputError, match=r"not finite.*another precision"):
        sampler.choose_next(StoredPrediction(logits))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", value) for value in (1.5, "1", True, float("nan"), [1], -1)),
        *(("top_k", value) for value in (1.5, None, "1", True, -1)),
        *((name, None) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        *((name, float("nan")) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        *((name, "1") for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
    ],
)
def test_settings_of_another_type_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*It must be"):
        Sampling(**{name: value})


def test_numbers_of_numpy_are_settings() -> None:
    assert Sampling(seed=np.int64(3), top_k=np.int32(2), temperature=np.float32(1)) == Sampling(
        seed=3, top_k=2, temperature=1
    )


@given(st.data(), arrays(np.float32, 12, elements=st.floats(-20, 20, width=16)), st.floats(0.5, 2))
def test_bias_and_penalties_equal_their_formulas(data: st.DataObject, logits: Logits, repetition: float) -> None:
    penalties = st.floats(-2, 2, width=16)
    bias = data.draw(st.dictionaries(st.integers(0, 11), st.floats(-100, 100, width=16)))
    frequency, presence = data.draw(penalties), data.draw(penalties)
    sampling = Sampling(
        logit_bias=bias,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    seen = unseen(12)
    seen[[2, 3]] = True  # tokens of the prompt, which only the repetition penalty counts
    sampler, chosen = Sampler(sampling, seen), list[int]()
    for _ in range(6):
        adjusted = []
        for token, logit in enumerate(logits.astype(np.float64)):
            value = logit + bias.get(token, 0.0)
            if seen[token]:
                value = value / repetition if value > 0 else value * repetition
            value -= frequency * chosen.count(token) + presence * (token in chosen)
            adjusted.append(value)
        token = sampler.choose_next(StoredPrediction(logits))
        assert adjusted[token] >= max(adjusted) - 1e-4  # of equal ones, float32 may take another
        chosen.append(token)
        seen[token] = True


def test_a_barred_token_is_never_chosen() -> None:
    logits = np.array([9.0, 8.0, 1.0, 0.0], dtype=np.float32)
    assert Sampler(Sampling(), unseen(4)).choose_next(StoredPrediction(logits), {0}) == 1
    sampler = Sampler(Sampling(temperature=1e6, seed=0), unseen(4))
    assert {sampler.choose_next(StoredPrediction(logits), {0, 3}) for _ in range(50)} == {1, 2}
    assert logits[0] == 9.0  # the executor's memory does not change


def test_a_bias_changes_what_the_graph_would_choose_by_itself() -> None:
    class Computed(StoredPrediction):
        def argmax(self) -> int:
            return 0

    prediction = Computed(np.array([1.0, 0.0], dtype=np.float32))
    assert Sampler(Sampling(), unseen(2)).choose_next(prediction) == 0
    assert Sampler(Sampling(logit_bias={1: 2.0}), unseen(2)).choose_next(prediction) == 1
    assert Sampler(Sampling(presence_penalty=2.0), unseen(2)).is_greedy is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty is 2.5"),
        ({"presence_penalty": -3}, "presence_penalty is -3"),
        ({"logit_bias": {1: 101}}, "logit_bias of token 1 is 101"),
        ({"logit_bias": {-1: 1}}, "logit_bias has the key -1"),
        ({"logit_bias": {"1": 1}}, "logit_bias has the key '1'"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias of token 1 is nan"),
        ({"logit_bias": 3}, "logit_bias is 3"),
    ],
)
def test_a_bias_or_penalty_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**values)


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="token 4, outside the vocabulary of 4 entries"):
        Sampler(Sampling(logit_bias={4: 1.0}), unseen(4))


def test_settings_with_a_bias_can_be_compared_and_hashed() -> None:
    assert len({Sampling(logit_bias={1: 2.0, 0: 1.0}), Sampling(logit_bias={0: 1, 1: 2})}) == 1
