"""Error rates by exact recursion over the path of (successes, trials): no simulation noise."""

from __future__ import annotations

from collections import defaultdict

import pytest

from probes.stats.sequential import Sprt


def outcome(test: Sprt, p: float) -> dict[str, float]:
    """Exact chance of each verdict when the true rate is p."""
    alive = {0: 1.0}
    ended: dict[str, float] = defaultdict(float)
    n = 0
    while alive:
        n += 1
        after: dict[int, float] = defaultdict(float)
        for successes, chance in alive.items():
            after[successes + 1] += chance * p
            after[successes] += chance * (1 - p)
        alive = {}
        for successes, chance in after.items():
            verdict = test.judge(successes, n)
            if verdict == "go on":
                alive[successes] = chance
            else:
                ended[verdict] += chance
    return ended


@pytest.mark.parametrize(("good", "bad"), [(0.95, 0.80), (0.90, 0.70), (0.80, 0.50), (0.94, 0.73)])
def test_errors_stay_near_their_nominal_size(good: float, bad: float) -> None:
    test = Sprt(good, bad, at_least=6, at_most=400)
    assert outcome(test, good)["bad"] <= 0.06
    assert outcome(test, bad)["good"] <= 0.06
    assert outcome(test, good)["undecided"] < 0.01


def test_clear_cases_stop_early() -> None:
    test = Sprt(0.90, 0.70, at_least=6, at_most=48)
    n = 1
    while test.judge(0, n) == "go on":
        n += 1
    assert (test.judge(0, n), n) == ("bad", 6)


def test_the_cap_says_undecided() -> None:
    test = Sprt(0.9, 0.7, at_least=6, at_most=10)
    assert test.judge(8, 10) == "undecided"


def test_more_needed_points_to_the_nearer_side() -> None:
    test = Sprt(0.9, 0.7)
    more = test.more_needed(10, 10)
    assert more is not None
    assert test.judge(10 + more, 10 + more) == "good"
    worse = test.more_needed(5, 10)
    assert worse is not None
    balanced = Sprt(0.75, 0.25)
    assert balanced.more_needed(10, 20) is None


@pytest.mark.parametrize(("good", "bad"), [(0.7, 0.9), (1.0, 0.5), (0.5, 0.0)])
def test_impossible_hypotheses_are_refused(good: float, bad: float) -> None:
    with pytest.raises(ValueError, match="sequential"):
        Sprt(good, bad)
