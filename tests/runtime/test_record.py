import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from liger_export.runtime.record import NO_TEXT, digest_after, starts_with


def tokens_of(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(values=st.lists(st.integers(0, 200_000), max_size=20), cut=st.integers(0, 20))
def test_a_digest_does_not_depend_on_how_a_text_is_split(values: list[int], cut: int) -> None:
    whole = digest_after(NO_TEXT, tokens_of(values))
    assert digest_after(digest_after(NO_TEXT, tokens_of(values[:cut])), tokens_of(values[cut:])) == whole


@given(one=st.lists(st.integers(0, 3), max_size=6), other=st.lists(st.integers(0, 3), max_size=6))
def test_a_digest_recognizes_exactly_the_tokens_that_start_with_its_text(one: list[int], other: list[int]) -> None:
    digest = digest_after(NO_TEXT, tokens_of(one))
    assert starts_with(tokens_of(other), len(one), digest) == (other[: len(one)] == one)
    assert not starts_with(tokens_of(other), len(one), None)
