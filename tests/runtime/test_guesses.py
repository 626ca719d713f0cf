"""Guesses from a text, and what wrong ones may cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liger_export.runtime.guesses import MATCHED, MOST_REMEMBERED, Budget, Guesses, cost, expected_gains

texts = st.lists(st.integers(0, 3), max_size=60)


def continued(text: list[int], place: int, count: int) -> list[int]:
    """Continue a text as it went on after a place, beyond its end too."""
    found = list(text)
    for index in range(count):
        found.append(found[place + index])
    return found[len(text) :]


@given(text=texts, indexed=st.integers(0, 60), most=st.integers(1, 15))
def test_a_guess_is_what_followed_the_last_tokens_before(text: list[int], indexed: int, most: int) -> None:
    guesses = Guesses(text[:indexed])
    for token in text[indexed:]:
        guesses.append(token)
    found = guesses.after(most)
    places = [
        place for place in range(MATCHED, len(text)) if text[place - MATCHED : place] == text[len(text) - MATCHED :]
    ]
    assert len(found) <= most
    assert not found or found in [continued(text, place, len(found)) for place in places]


def test_a_text_is_followed_where_it_went_on_in_the_same_way() -> None:
    first, second = list(range(20)), [30, 31, 9, 10, 11, 40, 41, 42]
    guesses = Guesses([*first, *second, *first[:12]])  # "9, 10, 11" was last followed by 40
    assert guesses.after(4) == [12, 13, 14, 15]


def test_guesses_that_were_never_right_are_not_made() -> None:
    block, last = list(range(20)), list(range(10))
    assert Guesses([*block, *last]).after(15)
    misled = [token for number in range(40) for token in (*last, 100 + number)]
    assert Guesses([*block, *misled, *last]).after(15) == []


def test_longer_texts_that_repeat_have_longer_guesses() -> None:
    block = list(range(50))
    lengths = [len(Guesses([*block, *block[:count]]).after(15)) for count in (2, 3, 5, 12, 30)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (0, 15)


@given(rates=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_expected_gain_is_the_mean_over_all_outcomes(rates: list[float]) -> None:
    for count, gain in enumerate(expected_gains(rates)):
        if count == 0:
            assert gain == 0
            continue
        mean, reached = 0.0, 1.0
        for right in range(count):  # the guess after these is wrong
            mean += reached * (1 - rates[right]) * (right - cost(count) - cost(right + 1))
            reached *= rates[right]
        assert gain == pytest.approx(mean + reached * (count - cost(count)))


def test_what_is_remembered_does_not_grow() -> None:
    guesses = Guesses(range(MOST_REMEMBERED))
    for token in range(3 * MOST_REMEMBERED):
        guesses.append(MOST_REMEMBERED + token)
    assert len(guesses._tokens) <= MOST_REMEMBERED
    assert len(guesses._next) <= MOST_REMEMBERED
    latest = list(range(4 * MOST_REMEMBERED - 20, 4 * MOST_REMEMBERED))
    for token in latest:
        guesses.append(token)
    for token in latest[:12]:
        guesses.append(token)
    assert guesses.after(4) == latest[12:16]


@given(calls=st.lists(st.tuples(st.integers(1, 15), st.integers(0, 15)), max_size=300))
def test_wrong_guesses_cost_no_more_than_the_budget(calls: list[tuple[int, int]]) -> None:
    budget, lost, tokens = Budget(), 0.0, 0
    for most, outcome in calls:
        guessed = min(most, budget.most)
        if guessed:
            right = min(outcome, guessed)
            budget.spend(guessed, right)
            lost += cost(guessed) + (0 if right == guessed else cost(right + 1)) - right
        budget.earn()
        tokens += 1
    assert lost <= 4.0 + 0.02 * tokens
