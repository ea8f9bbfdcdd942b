"""Comparing two models that were asked the same questions, and two series of speeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from probes.stats.intervals import LEVEL, Interval, wilson

__all__ = [
    "Equivalence",
    "Pairs",
    "difference_independent",
    "difference_paired",
    "holm",
    "mcnemar",
    "minimum_detectable",
    "tost",
]


class Pairs(NamedTuple):
    """Outcomes of the same trials under A and B."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither


class Equivalence(NamedTuple):
    """Two one-sided tests: `equivalent` when the difference is shown to lie inside ± `margin`."""

    mean: float
    interval: Interval  # at level 1 - 2 alpha, as the two tests imply
    p_value: float
    margin: float
    equivalent: bool


def mcnemar(pairs: Pairs) -> float:
    """Two-sided exact p-value that A and B succeed equally often. Source: McNemar, Psychometrika 12 (1947) 153, with the
    binomial distribution of the discordant pairs."""
    return _binomial_two_sided(pairs.only_a, pairs.only_a + pairs.only_b)


def difference_paired(pairs: Pairs, level: float = LEVEL) -> Interval:
    """Interval of rate(A) - rate(B) on the same trials. Source: Newcombe, Statistics in Medicine 17 (1998) 2635, method 10
    (score limits, correlation with continuity correction)."""
    n = pairs.n
    if n == 0:
        return Interval(-1.0, 1.0, level, "newcombe-paired")
    a, b, c, d = pairs
    p1, p2 = (a + b) / n, (a + c) / n
    first, second = wilson(a + b, n, level), wilson(a + c, n, level)
    product = (a + b) * (c + d) * (a + c) * (b + d)
    cross = a * d - b * c
    if cross > n / 2:
        cross_corrected = cross - n / 2
    elif cross >= 0:
        cross_corrected = 0.0
    else:
        cross_corrected = float(cross)
    phi = cross_corrected / math.sqrt(product) if product else 0.0
    down1, up1 = p1 - first.lo, first.hi - p1
    down2, up2 = p2 - second.lo, second.hi - p2
    delta = math.sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    epsilon = math.sqrt(max(0.0, up1**2 - 2 * phi * up1 * down2 + down2**2))
    return Interval(p1 - p2 - delta, p1 - p2 + epsilon, level, "newcombe-paired")


def difference_independent(successes_a: int, n_a: int, successes_b: int, n_b: int, level: float = LEVEL) -> Interval:
    """Interval of rate(A) - rate(B) on different trials. Source: Newcombe, Statistics in Medicine 17 (1998) 873, method 10."""
    if n_a == 0 or n_b == 0:
        return Interval(-1.0, 1.0, level, "newcombe")
    p1, p2 = successes_a / n_a, successes_b / n_b
    first, second = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    low = p1 - p2 - math.hypot(p1 - first.lo, second.hi - p2)
    high = p1 - p2 + math.hypot(first.hi - p1, p2 - second.lo)
    return Interval(low, high, level, "newcombe")


def minimum_detectable(n: int, *, counter: float = 0.05, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest difference of rates that `n` pairs would show as significant with `power`, exactly.

    `counter`: the share of pairs in which the weaker model alone succeeds. `None` when even the largest possible
    difference would not show. Power of the exact McNemar test, summed over the number of discordant pairs.
    """
    largest = 1.0 - 2 * counter
    if n < 1 or _power(n, counter, largest, alpha) < power:
        return None
    low, high = 0.0, largest
    while high - low > 0.002:
        middle = (low + high) / 2
        low, high = (low, middle) if _power(n, counter, middle, alpha) >= power else (middle, high)
    return high


def tost(differences: Sequence[float], margin: float, alpha: float = 0.05) -> Equivalence | None:
    """Are paired differences (of log speeds, say) inside ± `margin`? `None` below two values.

    Source: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15 (1987) 657; one-sample t in both directions.
    """
    n = len(differences)
    if n < 2:
        return None
    from scipy.special import stdtr, stdtrit

    mean = math.fsum(differences) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
    error = spread / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - alpha)) * error
    interval = Interval(mean - half, mean + half, 1 - 2 * alpha, "t")
    if error == 0:
        p_value = 0.0 if abs(mean) < margin else 1.0
    else:
        above = float(stdtr(n - 1, -(mean + margin) / error))
        below = float(stdtr(n - 1, (mean - margin) / error))
        p_value = max(above, below)
    return Equivalence(mean, interval, p_value, margin, p_value < alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in the order given. Source: Holm, Scandinavian J. of Statistics 6 (1979) 65."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


@lru_cache(maxsize=65536)
def _binomial_two_sided(k: int, n: int) -> float:
    if n == 0:
        return 1.0
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(k, n - k), n, 0.5)))


@lru_cache(maxsize=4096)
def _rejects_from(n: int, alpha: float) -> int:
    """The largest k (of n discordant pairs, smaller side) at which the exact test still rejects; -1 if it never does."""
    k = -1
    while k + 1 <= n // 2 and _binomial_two_sided(k + 1, n) <= alpha:
        k += 1
    return k


def _power(n: int, counter: float, difference: float, alpha: float) -> float:
    from scipy.special import bdtr
    from scipy.stats import binom

    discordant = counter + counter + difference
    if discordant <= 0:
        return 0.0
    weaker = counter / discordant
    chances = binom.pmf(range(n + 1), n, min(1.0, discordant))
    total = 0.0
    for m, chance in enumerate(chances):
        if chance > 1e-9 and (limit := _rejects_from(m, alpha)) >= 0:
            total += float(chance) * float(bdtr(limit, m, weaker))
    return total
