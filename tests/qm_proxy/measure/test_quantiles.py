from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qm_proxy.measure.quantiles import EXACT, Running, Sampled, Trailing, mad_of_sorted, quantile_of_sorted

NUMBERS = st.lists(st.integers(0, 10**12), min_size=1, max_size=120)
QS = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


@given(NUMBERS, st.floats(0, 1))
def test_agrees_with_scipy(values: list[int], q: float) -> None:
    expected = float(stats.mstats.mquantiles(values, [q], alphap=1, betap=1)[0])
    assert quantile_of_sorted(sorted(values), q) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(NUMBERS)
def test_mad_agrees_with_scipy(values: list[int]) -> None:
    assert mad_of_sorted(sorted(values)) == pytest.approx(float(stats.median_abs_deviation(values)), rel=1e-12)


@given(NUMBERS, st.integers(0, 10**12))
def test_mad_about_any_centre(values: list[int], centre: int) -> None:
    expected = statistics.median(abs(value - centre) for value in values)
    assert mad_of_sorted(sorted(values), centre) == pytest.approx(expected)


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_running_is_exact_while_few(portions: list[list[int]]) -> None:
    running = Running()
    for portion in portions:
        running.extend(portion)
    values = sorted(v for portion in portions for v in portion)
    assert running.quantiles(*QS) == [quantile_of_sorted(values, q) for q in QS]
    assert running.mad() == mad_of_sorted(values)
    assert (running.n, running.total) == (len(values), sum(values))
    assert running.greatest == values[-1]
    assert running.above(1000) == (sum(v > 1000 for v in values), sum(v for v in values if v > 1000))


LAWS: dict[str, Callable[[random.Random], float]] = {
    "steady": lambda chance: chance.lognormvariate(16.6, 0.05),
    "wide": lambda chance: chance.lognormvariate(16.6, 1.5),
    "two-humped": lambda chance: chance.choice((300, 48_000_000)) * chance.uniform(0.9, 1.1),
    "tiny": lambda chance: chance.randrange(40),
}


@pytest.mark.parametrize("law", LAWS)
def test_running_stays_within_its_bound_when_many(law: str) -> None:
    chance = random.Random(3)
    values = [int(LAWS[law](chance)) for _ in range(3 * EXACT + 1)]
    running = Running()
    for at in range(0, len(values), 700):
        running.extend(values[at : at + 700])
    values.sort()
    for q in (0.0, 0.1, 0.25, 0.9, 0.99, 1.0):
        exact = quantile_of_sorted(values, q)
        assert running.quantile(q) == pytest.approx(exact, rel=0.004, abs=1e-9), q
    middle = quantile_of_sorted(values, 0.5)
    if law != "two-humped":  # its median is a gap wide: any value in it is one
        assert running.quantile(0.5) == pytest.approx(middle, rel=0.004)
        assert running.mad() == pytest.approx(mad_of_sorted(values), rel=0.02, abs=0.008 * middle)
    tail = running.above(2 * values[-1] / 3)
    assert tail.n == pytest.approx(sum(v > 2 * values[-1] / 3 for v in values), rel=0.15, abs=2)
    assert (running.n, running.total, running.greatest) == (len(values), sum(values), values[-1])


def test_running_is_bounded_in_memory() -> None:
    chance = random.Random(5)
    running = Running()
    for _ in range(60):
        running.extend([int(chance.lognormvariate(17, 3)) for _ in range(1000)])
    running.extend([2**62])
    held = sum(sys.getsizeof(getattr(running, name)) for name in ("_values", "_bins"))
    assert held <= 64 * 1024
    assert running.greatest == 2**62


def test_nothing_is_none_and_not_zero() -> None:
    empty = Running()
    empty.extend([])
    assert (empty.quantile(0.5), empty.quantiles(0.5), empty.mad(), empty.mean) == (None, [], None, None)
    assert empty.above(0) == (0, 0)
    window = Trailing(3)
    assert (window.median(), window.mad(), window.quantile(0.9)) == (None, None, None)
    for broken in (quantile_of_sorted, lambda values, _: mad_of_sorted(values, 1.0)):
        with pytest.raises(ValueError, match="found none"):
            broken([], 0.5)


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 9))
def test_sampled_takes_every_so_manyth_whatever_the_portions(portions: list[int], limit: int) -> None:
    sampled, n = Sampled(limit), 0
    for size in portions:
        sampled.extend(list(range(n, n + size)))
        n += size
    every = 1
    while len(range(0, n, every)) > limit:
        every *= 2
    taken = list(range(0, n, every))
    assert sampled.n == n
    assert sampled.quantile(0.5) == (quantile_of_sorted(taken, 0.5) if taken else None)
    assert sampled.quantile(1.0) == (taken[-1] if taken else None)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=90), st.integers(1, 17))
def test_trailing_equals_a_fresh_look_at_its_window(values: list[int], size: int) -> None:
    window = Trailing(size)
    for i, value in enumerate(values):
        window.push(value)
        seen = values[max(0, i + 1 - size) : i + 1]
        middle = statistics.median(seen)
        assert len(window) == len(seen)
        assert window.median() == middle
        assert window.mad() == statistics.median(abs(v - middle) for v in seen)
        assert window.mad(7) == statistics.median(abs(v - 7) for v in seen)
        assert window.quantile(1.0) == max(seen)


@given(st.lists(st.lists(st.integers(0, 10**9), max_size=5), max_size=20), st.integers(5, 12))
def test_trailing_takes_several_at_once(parts: list[list[int]], size: int) -> None:
    together, alone = Trailing(size), Trailing(size)
    for part in parts:
        together.extend(part)
        for value in part:
            alone.push(value)
        assert (len(together), together.median(), together.mad()) == (len(alone), alone.median(), alone.mad())


def test_trailing_forgets() -> None:
    window = Trailing(3)
    window.push(5)
    window.clear()
    assert len(window) == 0
    window.push(2)
    assert window.median() == 2
