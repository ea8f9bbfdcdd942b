"""A statistic in words: nothing that a reader needs to doubt it is left out, and what is unknown is not a number."""

from __future__ import annotations

import math

import pytest

from probes.result import Statistic
from probes.spoken import number, show
from probes.stats.intervals import Interval


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.00042, "4.20e-04"), (0.0125, "0.0125"), (1.234, "1.23"), (16.57, "16.6"), (797, "797"), (2924.4, "2,924")],
)
def test_numbers_have_three_to_four_digits(value: float, words: str) -> None:
    assert number(value) == words


def test_value_unit_interval_level_and_n() -> None:
    pace = Statistic.of(16.57, Interval(16.5, 16.61, 0.95, "t"), n=4, unit="ms/token")
    assert show(pace) == "16.6 ms/token [16.5, 16.6] (95%, n 4)"
    share = Statistic.of(1.0, Interval(0.701, 1.0, 0.95, "wilson"), n=9, unit="share")
    assert show(share, percent=True) == "100% [70%, 100%] (95%, n 9)"


def test_what_bounds_nothing_says_so() -> None:
    assert show(None) == "–"
    assert show(Statistic.of(2.0, Interval(-math.inf, math.inf, 0.95, "none"), n=1, unit="ms")) == "2.00 ms (n 1)"
    assert (
        show(Statistic.of(2.0, Interval(1.0, math.inf, 0.95, "order-statistic"), n=3, unit="ms"))
        == "2.00 ms [1.00, ∞] (95%, n 3)"
    )
