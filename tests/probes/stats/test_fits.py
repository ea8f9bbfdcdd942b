"""Known laws come back, doubt covers them, and curvature is claimed only where it is."""

from __future__ import annotations

import random

import pytest

from probes.stats.fits import line, logit_slope, prefill_law

LENGTHS = [128, 512, 2048, 8192, 32768]


def noisy(a: float, b: float, c: float, noise: float, seed: int) -> tuple[list[float], list[float]]:
    draw = random.Random(seed)
    x = [float(n) for n in LENGTHS for _ in range(3)]
    return x, [(a + b * n + c * n * n) * draw.gauss(1, noise) for n in x]


def test_prefill_law_finds_fixed_cost_slope_and_curvature() -> None:
    fit = prefill_law(*noisy(0.02, 1e-3, 1e-3 / 32768, 0.005, 3))
    assert fit is not None
    assert fit.curvature is not None
    assert fit.slope.value == pytest.approx(1e-3, rel=0.02)
    assert fit.slope.value / fit.curvature.value == pytest.approx(32768, rel=0.05)
    assert fit.at(2048) == pytest.approx(0.02 + 2.048 + 2048**2 * 1e-3 / 32768, rel=0.02)


def test_prefill_intervals_cover_the_truth() -> None:
    hits = runs = 0
    for seed in range(200):
        fit = prefill_law(*noisy(0.05, 1e-3, 0.0, 0.02, seed))
        assert fit is not None
        if fit.curvature is None:
            runs += 1
            hits += fit.slope.interval.lo <= 1e-3 <= fit.slope.interval.hi
    assert runs >= 170
    assert hits / runs >= 0.90


def test_prefill_law_needs_three_lengths() -> None:
    assert prefill_law([1, 1, 2], [1, 1, 2]) is None


def test_line_through_two_points_has_no_doubt_to_offer() -> None:
    fit = line([1, 2], [3, 5])
    assert fit is not None
    assert [fit.fixed.value, fit.slope.value] == pytest.approx([1, 2])
    assert fit.slope.interval.hi == float("inf")
    assert line([1, 1], [2, 3]) is None


def test_logit_slope_sees_a_decline_and_not_a_plateau() -> None:
    down = logit_slope([9, 10, 11, 12, 13], [40, 36, 30, 20, 9], [40] * 5)
    flat = logit_slope([9, 10, 11, 12, 13], [38, 37, 39, 38, 38], [40] * 5)
    assert down is not None
    assert flat is not None
    assert down.interval.hi < 0
    assert flat.interval.lo < 0 < flat.interval.hi
    assert logit_slope([1, 1], [1, 2], [3, 3]) is None
