import pytest

from liger_export.bench.timing import Spread, timed


def test_a_spread_is_the_median_and_the_percentiles_around_it() -> None:
    spread = Spread.of([float(value) for value in range(101)])
    assert (spread.p10, spread.median, spread.p90) == pytest.approx((10, 50, 90))
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_a_spread_is_scaled_and_formatted() -> None:
    spread = Spread(0.5, 0.25, 1.0).scaled(10)
    assert spread == Spread(5.0, 2.5, 10.0)
    assert spread.text() == "5.0 (2.5-10.0)"
    assert spread.text(0) == "5 (2-10)"


def test_a_timed_call_returns_its_result() -> None:
    result, seconds = timed(lambda: "result")
    assert result == "result"
    assert seconds >= 0
