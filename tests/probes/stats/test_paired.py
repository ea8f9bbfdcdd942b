"""Paired comparisons: SciPy's p-values, published worked examples, coverage by enumeration."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probes.stats.paired import (
    Pairs,
    difference_independent,
    difference_paired,
    holm,
    mcnemar,
    minimum_detectable,
    tost,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(b: int, c: int) -> None:
    expected = 1.0 if b + c == 0 else stats.binomtest(b, b + c).pvalue
    assert mcnemar(Pairs(5, b, c, 5)) == pytest.approx(expected, abs=1e-9)


def test_newcombe_independent_reproduces_the_published_example() -> None:
    # Newcombe 1998, table II (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339
    found = difference_independent(56, 70, 48, 80)
    assert [found.lo, found.hi] == pytest.approx([0.0524, 0.3339], abs=1e-4)


@pytest.mark.parametrize("truth", [(0.80, 0.10, 0.05, 0.05), (0.60, 0.20, 0.05, 0.15), (0.90, 0.04, 0.04, 0.02)])
def test_paired_difference_covers(truth: tuple[float, float, float, float]) -> None:
    draw = random.Random(2)
    n, runs, hits = 60, 1500, 0
    for _ in range(runs):
        cells = [0, 0, 0, 0]
        for cell in draw.choices(range(4), truth, k=n):
            cells[cell] += 1
        found = difference_paired(Pairs(*cells))
        hits += found.lo <= truth[1] - truth[2] <= found.hi
    assert hits / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs) - 0.01


def test_paired_difference_is_antisymmetric_and_bounded() -> None:
    forth, back = difference_paired(Pairs(30, 9, 3, 8)), difference_paired(Pairs(30, 3, 9, 8))
    assert forth.lo == pytest.approx(-back.hi)
    assert forth.hi == pytest.approx(-back.lo)
    assert difference_paired(Pairs(0, 0, 0, 0))[:2] == (-1.0, 1.0)
    assert difference_independent(0, 0, 1, 2)[:2] == (-1.0, 1.0)
    assert -1 <= difference_paired(Pairs(0, 10, 0, 0)).lo <= difference_paired(Pairs(0, 10, 0, 0)).hi <= 1


def test_minimum_detectable_has_the_power_it_promises() -> None:
    n = 60
    delta = minimum_detectable(n)
    assert delta is not None
    draw = random.Random(4)
    cells = (0.95 - 0.05 - 0.05 - delta, 0.05 + delta, 0.05, 0.05)
    found = 0
    for _ in range(800):
        drawn = draw.choices(range(4), cells, k=n)
        found += mcnemar(Pairs(*(drawn.count(cell) for cell in range(4)))) <= 0.05
    assert found / 800 == pytest.approx(0.8, abs=0.05)
    assert minimum_detectable(4) is None
    assert minimum_detectable(240) < delta  # type: ignore[operator]


def test_tost_says_same_only_with_evidence() -> None:
    close = tost([0.001, -0.002, 0.0, 0.001, -0.001], 0.05)
    wide = tost([0.2, -0.2, 0.1, -0.1], 0.05)
    apart = tost([0.10, 0.11, 0.10, 0.12], 0.05)
    constant = tost([0.01, 0.01], 0.05)
    assert close is not None
    assert close.equivalent
    assert wide is not None
    assert not wide.equivalent
    assert apart is not None
    assert apart.p_value > 0.9
    assert constant is not None
    assert constant.equivalent
    assert tost([0.1], 0.05) is None


def test_tost_rarely_calls_a_difference_at_the_margin_the_same() -> None:
    draw = random.Random(8)
    wrong = sum(bool((found := tost([draw.gauss(0.05, 0.03) for _ in range(8)], 0.05)) and found.equivalent) for _ in range(2000))
    assert wrong / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_holm_adjusts_in_the_given_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
