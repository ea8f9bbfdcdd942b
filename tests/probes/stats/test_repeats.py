"""Pass^k is unbiased by enumeration, and its interval covers."""

from __future__ import annotations

import math

import pytest

from probes.stats.repeats import all_of_k, per_instance, streak_interval


@pytest.mark.parametrize(("n", "k", "p"), [(16, 16, 0.9), (20, 5, 0.8), (40, 8, 0.95)])
def test_all_of_k_is_unbiased(n: int, k: int, p: float) -> None:
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * (all_of_k(c, n, k) or 0.0) for c in range(n + 1))
    assert expected == pytest.approx(p**k)


def test_sixteen_of_sixteen_promises_little() -> None:
    assert streak_interval(16, 16, 16).lo == pytest.approx(0.025)
    assert streak_interval(5, 5, 5).lo == pytest.approx(0.025)


def test_fewer_than_k_runs_say_nothing() -> None:
    assert all_of_k(3, 3, 4) is None
    assert per_instance([(3, 3)], 4) is None
    assert per_instance([(16, 16), (0, 16)], 16) == pytest.approx(0.5)
