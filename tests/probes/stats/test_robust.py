"""Rolling summaries agree with the plain ones; the slope is SciPy's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probes.stats.robust import mad, median, quantile, rolling, theil_sen

numbers = st.lists(st.floats(0, 1000, allow_nan=False), min_size=1, max_size=120)


@settings(max_examples=100, deadline=None)
@given(numbers, st.sampled_from([3, 5, 65]))
def test_rolling_equals_the_summary_of_each_window(values: list[float], window: int) -> None:
    half = window // 2
    for index, local in enumerate(rolling(values, window)):
        around = values[max(0, index - half) : index + half + 1]
        assert local.median == median(around)
        assert local.mad == pytest.approx(mad(around), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(numbers)
def test_median_and_mad_agree_with_scipy(values: list[float]) -> None:
    assert mad(values) == pytest.approx(float(stats.median_abs_deviation(values)), abs=1e-9)
    assert quantile(values, 0.5) == pytest.approx(median(values))


def test_nothing_has_no_median() -> None:
    with pytest.raises(ValueError, match="median"):
        median([])
    with pytest.raises(ValueError, match="quantile"):
        quantile([], 0.5)


def test_theil_sen_ignores_a_wild_point() -> None:
    x = list(range(20))
    y = [2.0 * v + 1 for v in x]
    y[7] = 1e6
    found = theil_sen(x, y)
    assert found is not None
    assert found.slope == pytest.approx(2.0)
    assert found.interval.lo <= 2.0 <= found.interval.hi


def test_theil_sen_needs_three_points_and_two_places() -> None:
    assert theil_sen([1, 2], [1, 2]) is None
    assert theil_sen([1, 1, 1], [1, 2, 3]) is None
    assert theil_sen([1, 1, 2], [1, 2, 3]) is not None
