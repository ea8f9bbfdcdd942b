"""Least-squares fits with a law behind them: prefill time over length, memory over window, decode over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from probes.stats.intervals import LEVEL, Interval

__all__ = ["Coefficient", "Fit", "line", "logit_slope", "prefill_law"]


class Coefficient(NamedTuple):
    value: float
    interval: Interval


class Fit(NamedTuple):
    """y = fixed + slope * x + curvature * x^2; `curvature` is `None` where the data do not ask for it."""

    fixed: Coefficient
    slope: Coefficient
    curvature: Coefficient | None
    residuals: tuple[float, ...]  # relative for `prefill_law`, in y's unit for `line`
    n: int

    def at(self, x: float) -> float:
        """The fitted y at x."""
        return self.fixed.value + self.slope.value * x + (self.curvature.value * x * x if self.curvature else 0.0)


def line(x: Sequence[float], y: Sequence[float], level: float = LEVEL) -> Fit | None:
    """Ordinary least squares; `None` without two distinct x. With two points the intervals are infinite."""
    if len(set(x)) < 2:
        return None
    found = _solve(x, y, [1.0] * len(x), 1, level)
    return Fit(found.coefficients[0], found.coefficients[1], None, found.residuals, len(x))


def prefill_law(tokens: Sequence[float], seconds: Sequence[float], level: float = LEVEL) -> Fit | None:
    """t(N) = a + bN + cN^2 with relative errors (weights 1/t), c >= 0 and kept only if it lowers AICc by 2 or more.

    Attention's share is the square term, so b/c is the length at which it doubles the cost of a token's own work.
    Source of the criterion: Burnham and Anderson, Model Selection (2002), 2.4. `None` below three distinct lengths.
    """
    if len(set(tokens)) < 3:
        return None
    weights = [1.0 / second for second in seconds]
    straight = _solve(tokens, seconds, weights, 1, level)
    chosen = straight
    if len(set(tokens)) >= 4:
        bent = _solve(tokens, seconds, weights, 2, level)
        if bent.coefficients[2].value > 0 and bent.aicc <= straight.aicc - 2:
            chosen = bent
    curvature = chosen.coefficients[2] if len(chosen.coefficients) == 3 else None
    return Fit(chosen.coefficients[0], chosen.coefficients[1], curvature, chosen.residuals, len(tokens))


def logit_slope(x: Sequence[float], successes: Sequence[int], trials: Sequence[int], level: float = LEVEL) -> Coefficient | None:
    """Slope of logit(success) on x by maximum likelihood, half a success and half a failure added to each group.

    Source: McCullagh and Nelder, Generalized Linear Models (1989), 4.4 (iteratively re-weighted least squares); the
    added halves are Haldane's and keep groups at 0 and 1 finite. `None` without two distinct x.
    """
    if len(set(x)) < 2:
        return None
    centre = math.fsum(x) / len(x)
    shifted = [value - centre for value in x]
    totals = [n + 1.0 for n in trials]
    rates = [(s + 0.5) / n for s, n in zip(successes, totals, strict=True)]
    a, b = 0.0, 0.0
    information = 1.0
    for _ in range(50):
        fitted = [1 / (1 + math.exp(-max(-30.0, min(30.0, a + b * value)))) for value in shifted]
        weight = [n * p * (1 - p) for n, p in zip(totals, fitted, strict=True)]
        score_a = math.fsum(n * (r - p) for n, r, p in zip(totals, rates, fitted, strict=True))
        score_b = math.fsum(n * (r - p) * v for n, r, p, v in zip(totals, rates, fitted, shifted, strict=True))
        aa = math.fsum(weight)
        ab = math.fsum(w * v for w, v in zip(weight, shifted, strict=True))
        bb = math.fsum(w * v * v for w, v in zip(weight, shifted, strict=True))
        determinant = aa * bb - ab * ab
        if determinant <= 0:
            return None
        step_a, step_b = (bb * score_a - ab * score_b) / determinant, (aa * score_b - ab * score_a) / determinant
        a, b = a + step_a, b + step_b
        information = determinant / aa
        if abs(step_a) + abs(step_b) < 1e-10:
            break
    from statistics import NormalDist

    half = NormalDist().inv_cdf(0.5 + level / 2) / math.sqrt(information)
    return Coefficient(b, Interval(b - half, b + half, level, "wald-logit"))


class _Solution(NamedTuple):
    coefficients: tuple[Coefficient, ...]
    residuals: tuple[float, ...]
    aicc: float


def _solve(x: Sequence[float], y: Sequence[float], weights: Sequence[float], degree: int, level: float) -> _Solution:
    import numpy
    from scipy.special import stdtrit

    scale = max(abs(value) for value in x) or 1.0  # keeps the normal equations well conditioned
    w = numpy.asarray(weights)
    design = numpy.vander(numpy.asarray(x, dtype=float) / scale, degree + 1, increasing=True) * w[:, None]
    target = numpy.asarray(y, dtype=float) * w
    solution, *_ = numpy.linalg.lstsq(design, target, rcond=None)
    residual = target - design @ solution
    n, k = len(x), degree + 1
    rss = float(residual @ residual)
    free = n - k
    if free > 0:
        covariance = numpy.linalg.pinv(design.T @ design) * (rss / free)
        errors = numpy.sqrt(numpy.maximum(numpy.diag(covariance), 0.0))
        reach = float(stdtrit(free, 0.5 + level / 2))
    else:
        errors, reach = numpy.full(k, math.inf), 1.0
    coefficients = []
    for power in range(k):
        unit = scale**power
        value, half = float(solution[power]) / unit, reach * float(errors[power]) / unit
        coefficients.append(Coefficient(value, Interval(value - half, value + half, level, "least-squares-t")))
    parameters = k + 1  # the error's own scale is one too
    room = n - parameters - 1
    aicc = (
        n * math.log(max(rss, 1e-300) / n) + 2 * parameters + 2 * parameters * (parameters + 1) / room if room > 0 else math.inf
    )
    return _Solution(tuple(coefficients), tuple(float(value) for value in residual), aicc)
