"""Coverage by enumeration, agreement with SciPy, and the ends of every interval."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probes.stats.intervals import (
    bootstrap,
    clopper_pearson,
    lower_limit,
    mean_t,
    order_statistic,
    poisson_rate,
    upper_limit,
    wilson,
)
from probes.stats.robust import median

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def coverage(interval, n: int, p: float) -> float:  # type: ignore[no-untyped-def]
    """Exact coverage at (n, p): the binomial mass of the outcomes whose interval holds p."""
    return sum(
        float(stats.binom.pmf(c, n, p)) for c in range(n + 1) if interval(c, n).lo - 1e-12 <= p <= interval(c, n).hi + 1e-12
    )


@settings(max_examples=100, deadline=None)
@given(counts)
def test_wilson_and_clopper_pearson_agree_with_scipy(drawn: tuple[int, int]) -> None:
    c, n = drawn
    theirs = stats.binomtest(c, n)
    for ours, method in ((wilson(c, n), "wilson"), (clopper_pearson(c, n), "exact")):
        other = theirs.proportion_ci(0.95, method=method)
        assert ours.lo == pytest.approx(other.low, abs=1e-9)
        assert ours.hi == pytest.approx(other.high, abs=1e-9)


@pytest.mark.parametrize("n", [5, 8, 12, 16, 20, 40, 48, 100])
def test_clopper_pearson_never_covers_less_than_its_level(n: int) -> None:
    assert min(coverage(clopper_pearson, n, p / 200) for p in range(1, 200)) >= 0.95


@pytest.mark.parametrize("n", [12, 16, 20, 40, 48, 100])
def test_wilson_covers_within_three_points_on_average_over_rates(n: int) -> None:
    rates = [p / 200 for p in range(1, 200)]
    mean = sum(coverage(wilson, n, p) for p in rates) / len(rates)
    assert abs(mean - 0.95) <= 0.03
    assert coverage(wilson, n, 0.95) >= 0.92


def test_one_sided_limits_are_the_ends_of_the_two_sided_interval() -> None:
    assert clopper_pearson(7, 10, 0.90)[:2] == (lower_limit(7, 10, 0.95), upper_limit(7, 10, 0.95))


def test_nothing_of_four_still_allows_sixty_percent() -> None:
    assert clopper_pearson(0, 4).hi == pytest.approx(0.602, abs=0.001)


@pytest.mark.parametrize(("c", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(c: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(c, n)


def test_no_trials_say_nothing() -> None:
    assert wilson(0, 0)[:2] == (0.0, 1.0)
    assert clopper_pearson(0, 0)[:2] == (0.0, 1.0)


@pytest.mark.parametrize("rate", [0.5, 3.0, 11.0])
def test_garwood_covers_at_least_its_level(rate: float) -> None:
    holding = [k for k in range(200) if poisson_rate(k, 1.0).lo <= rate <= poisson_rate(k, 1.0).hi]
    covered = sum(float(stats.poisson.pmf(k, rate)) for k in holding)
    assert covered >= 0.95


def test_a_rate_needs_an_exposure() -> None:
    with pytest.raises(ValueError, match="exposure"):
        poisson_rate(1, 0)


@pytest.mark.parametrize(("n", "q"), [(20, 0.5), (60, 0.5), (200, 0.9), (600, 0.99)])
def test_order_statistic_interval_covers_the_quantile(n: int, q: float) -> None:
    draw = random.Random(5)
    truth = q  # of the uniform distribution
    runs = 600
    hits = sum(i.lo <= truth <= i.hi for i in (order_statistic([draw.random() for _ in range(n)], q) for _ in range(runs)))
    assert hits / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def test_two_hundred_gaps_cannot_bound_the_99th_percentile() -> None:
    found = order_statistic([float(v) for v in range(200)], 0.99)
    assert found.hi == math.inf
    assert math.isfinite(found.lo)


@pytest.mark.parametrize("q", [0.0, 1.0])
def test_the_extremes_are_no_quantiles(q: float) -> None:
    with pytest.raises(ValueError, match="strictly"):
        order_statistic([1.0], q)


def test_bootstrap_of_the_median_covers_and_repeats_with_its_seed() -> None:
    draw = random.Random(9)
    hits = 0
    runs = 60
    for run in range(runs):
        found = bootstrap([draw.gauss(10, 1) for _ in range(25)], median, seed=run, resamples=400)
        hits += found.lo <= 10 <= found.hi
    assert hits / runs >= 0.85
    sample = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert bootstrap(sample, median, seed=1) == bootstrap(sample, median, seed=1)


def test_bootstrap_of_one_value_or_equal_values() -> None:
    assert bootstrap([3.0], median, seed=1).lo == -math.inf
    assert bootstrap([3.0, 3.0, 3.0], median, seed=1)[:2] == (3.0, 3.0)


def test_mean_t_is_students_interval() -> None:
    sample = [1.0, 2.0, 3.0, 4.0]
    theirs = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert list(mean_t(sample)[:2]) == pytest.approx([theirs.low, theirs.high])
    assert mean_t([1.0]).method == "none"
