"""Arrival times: jitter of many kinds, and stalls put into it before reads are joined."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate

__all__ = ["HEAVY", "JITTER", "PACE_NS", "times"]

PACE_NS = 1e9 / 60
Law = Callable[[random.Random, int], float]


def _lognormal(sigma: float) -> Law:
    return lambda rng, _: rng.lognormvariate(0, sigma)


def _student(rng: random.Random, scale: float) -> float:
    """1 + Student's t with 3 degrees of freedom, scaled; never under 0.2."""
    chi = sum(rng.gauss(0, 1) ** 2 for _ in range(3)) / 3
    return float(max(1 + scale * rng.gauss(0, 1) / chi**0.5, 0.2))


JITTER: dict[str, Law] = {
    "log-normal 5 %": _lognormal(0.05),
    "log-normal 15 %": _lognormal(0.15),
    "gamma tail": lambda rng, _: 0.8 + rng.gammavariate(2.0, 0.1),
    "Student t, 4 %": lambda rng, _: _student(rng, 0.04),
    "drift +25 %": lambda rng, i: (1 + 0.25 * min(i / 1500, 1)) * rng.lognormvariate(0, 0.05),
    "slow wave": lambda rng, i: (1 + 0.3 * ((i // 200) % 2)) * rng.lognormvariate(0, 0.08),
    "coalesced 2 %": _lognormal(0.05),
    "whole milliseconds": _lognormal(0.05),
    "log-normal 30 %": _lognormal(0.30),
    "bursts of four": _lognormal(0.05),
}
HEAVY = ("log-normal 30 %", "bursts of four")
"""Shown, but not ordinary jitter: the rule promises nothing short for them."""


def times(rng: random.Random, kind: str, n: int, stall_ns: int = 0, every: int = 300) -> tuple[list[int], list[int]]:
    """n arrival times in ns at 60 per second, and the chunks before which a stall was put (about each `every`-th)."""
    law = JITTER[kind]
    gaps = [PACE_NS * law(rng, i) for i in range(n)]
    places: list[int] = []
    if stall_ns:
        due = rng.randint(80, every)
        while due < n:
            gaps[due] += stall_ns
            places.append(due)
            due += rng.randint(every // 2, every * 3 // 2)
    made = [round(t) for t in accumulate(gaps, initial=1e9)][1:]
    for first, last in _joined(rng, kind, n):
        made[first : last + 1] = [made[last]] * (last + 1 - first)
        places = [first if first <= place <= last else place for place in places]
    if kind == "whole milliseconds":
        made = [round(t, -6) for t in made]
    return made, places


def _joined(rng: random.Random, kind: str, n: int) -> list[tuple[int, int]]:
    """Runs of chunks that arrive together, with the last of them."""
    if kind == "bursts of four":
        return [(i, min(i + 3, n - 1)) for i in range(0, n, 4)]
    runs: list[tuple[int, int]] = []
    i = 4
    while kind == "coalesced 2 %" and i < n - 4:
        if rng.random() < 0.02:
            runs.append((i, i + rng.randint(1, 3)))
            i = runs[-1][1]
        i += 1
    return runs
