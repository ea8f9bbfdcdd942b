"""Intervals for proportions, rates, quantiles and arbitrary statistics."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

__all__ = [
    "LEVEL",
    "Interval",
    "bootstrap",
    "clopper_pearson",
    "lower_limit",
    "mean_t",
    "order_statistic",
    "poisson_rate",
    "upper_limit",
    "wilson",
]

LEVEL = 0.95
"""Two-sided confidence unless the caller says otherwise."""


class Interval(NamedTuple):
    """A confidence interval. An end that the data cannot bound is infinite."""

    lo: float
    hi: float
    level: float
    method: str


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """For display of a proportion. Source: E. B. Wilson, JASA 22 (1927) 209-212; score interval without correction."""
    _check(successes, n)
    if n == 0:
        return Interval(0.0, 1.0, level, "wilson")
    z = _normal_quantile(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    lo = 0.0 if successes == 0 else max(0.0, centre - half)
    hi = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(lo, hi, level, "wilson")


def clopper_pearson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """For a claim that gates: never covers less than its level. Source: Clopper and Pearson, Biometrika 26 (1934) 404."""
    tail = (1 - level) / 2
    return Interval(lower_limit(successes, n, 1 - tail), upper_limit(successes, n, 1 - tail), level, "clopper-pearson")


@lru_cache(maxsize=65536)
def lower_limit(successes: int, n: int, level: float = LEVEL) -> float:
    """One-sided exact lower limit of a proportion (Clopper and Pearson): a Beta quantile."""
    _check(successes, n)
    if successes == 0:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(successes, n - successes + 1, 1 - level))


@lru_cache(maxsize=65536)
def upper_limit(successes: int, n: int, level: float = LEVEL) -> float:
    """One-sided exact upper limit of a proportion (Clopper and Pearson): a Beta quantile."""
    _check(successes, n)
    if successes == n:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(successes + 1, n - successes, level))


def poisson_rate(events: int, exposure: float, level: float = LEVEL) -> Interval:
    """For a count over an exposure (spikes per 1 000 tokens). Source: F. Garwood, Biometrika 28 (1936) 437; exact."""
    if events < 0 or exposure <= 0:
        raise ValueError(f"a rate needs events >= 0 and exposure > 0, not {events} and {exposure}")
    from scipy.special import gammaincinv

    tail = (1 - level) / 2
    lo = 0.0 if events == 0 else float(gammaincinv(events, tail)) / exposure
    hi = float(gammaincinv(events + 1, 1 - tail)) / exposure
    return Interval(lo, hi, level, "garwood")


def order_statistic(values: Sequence[float], q: float, level: float = LEVEL) -> Interval:
    """For a quantile, without assuming a distribution. Ends are order statistics; infinite where the sample is too small
    to bound that side. Source: David and Nagaraja, Order Statistics, 3rd ed., 7.1 (binomial ranks)."""
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies strictly between 0 and 1, not at {q}")
    ordered = sorted(values)
    n = len(ordered)
    below, above = _ranks(n, q, level)
    lo = ordered[below - 1] if below >= 1 else -math.inf
    hi = ordered[above - 1] if above <= n else math.inf
    return Interval(lo, hi, level, "order-statistic")


@lru_cache(maxsize=1024)
def _ranks(n: int, q: float, level: float) -> tuple[int, int]:
    """Ranks r < s with P(X_(r) <= quantile < X_(s)) >= level; 0 or n + 1 where there is no such rank."""
    from scipy.special import bdtr  # scipy.stats has the quantile itself, and takes 1.5 s to import

    def smallest(p: float) -> int:
        """The smallest k with P(B <= k) >= p, B binomial."""
        return bisect_left(range(n), p, key=lambda k: float(bdtr(k, n, q)))

    tail = (1 - level) / 2
    lower = smallest(tail)
    below = lower if lower == 0 or bdtr(lower - 1, n, q) <= tail else lower - 1
    return below, smallest(1 - tail) + 1


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float],
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = 2000,
) -> Interval:
    """For any statistic of independent observations (requests, never the correlated gaps of one stream).

    BCa where it is defined, percentile where the jackknife degenerates. Source: Efron, JASA 82 (1987) 171; SciPy's
    `bootstrap`. One observation bounds nothing: both ends are infinite.
    """
    if len(values) < 2:
        return Interval(-math.inf, math.inf, level, "none")
    if min(values) == max(values):
        point = statistic(values)
        return Interval(point, point, level, "bootstrap-constant")
    import numpy
    from scipy import stats

    def along(sample: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        answer: numpy.ndarray = numpy.apply_along_axis(lambda row: statistic(row.tolist()), axis, sample)
        return answer

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (numpy.asarray(values, dtype=float),),
                along,
                n_resamples=resamples,
                confidence_level=level,
                method=method,
                rng=numpy.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(float(found.low), float(found.high), level, f"bootstrap-{method.lower()}")
    return Interval(-math.inf, math.inf, level, "none")


def mean_t(values: Sequence[float], level: float = LEVEL) -> Interval:
    """For the mean of a few roughly normal observations (Student, Biometrika 6 (1908) 1). One value bounds nothing."""
    n = len(values)
    if n < 2:
        return Interval(-math.inf, math.inf, level, "none")
    from scipy.special import stdtrit

    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * spread / math.sqrt(n)
    return Interval(mean - half, mean + half, level, "t")


@lru_cache(maxsize=64)
def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def _check(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, not {successes} of {n}")
