"""The ladder against a known accuracy curve, without prompts or models: for its error rates in `selftest --full` and benches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from probes.audit.ladder import AskHeader, Design, Ladder, Verdict

__all__ = ["LOSS", "RUNGS", "Climb", "Truth", "cliff", "climb", "coverage", "dip", "false_loss", "flat", "slope"]

RUNGS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
LOSS = ("cliff", "gradual decline", "non-monotone")
"""Verdicts that claim a loss: on a flat model each is a false alarm."""

Truth: TypeAlias = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Climb:
    """One simulated run."""

    verdict: Verdict
    trials: int
    tokens: int


def climb(design: Design, truth: Truth, draw: random.Random) -> Climb:
    """Trials succeed with the chance that `truth` gives their length; the header is always known."""
    ladder = Ladder(design)
    steps = ladder.run()
    trials = tokens = 0
    try:
        step = next(steps)
        while True:
            tokens += step.target
            trials += 1
            step = steps.send(isinstance(step, AskHeader) or draw.random() < truth(step.target))
    except StopIteration:
        return Climb(ladder.verdict(), trials, tokens)


def false_loss(design: Design, rate: float, runs: int, seed: int) -> float:
    """Share of runs on a flat model that claim a loss."""
    draw = random.Random(f"{seed}/flat/{rate}")
    return sum(climb(design, flat(rate), draw).verdict.kind in LOSS for _ in range(runs)) / runs


def coverage(runs: int, seed: int) -> tuple[int, int]:
    """(intervals that hold the planted cliff, intervals claimed); place and height of the cliff are drawn for each run."""
    hits = claimed = 0
    for run in range(runs):
        draw = random.Random(f"{seed}/coverage/{run}")
        at = round(2 ** draw.uniform(10.2, 16.5))
        verdict = climb(Design.standard(RUNGS), cliff(draw.uniform(0.94, 1.0), draw.uniform(0.0, 0.4), at), draw).verdict
        if verdict.kind in ("cliff", "gradual decline") and verdict.between is not None:
            claimed += 1
            hits += verdict.between[0] <= at <= verdict.between[1]
    return hits, claimed


def flat(rate: float) -> Truth:
    return lambda tokens: rate


def cliff(high: float, low: float, at: int) -> Truth:
    return lambda tokens: high if tokens <= at else low


def slope(high: float, low: float, start: int, end: int) -> Truth:
    """Linear in the logarithm of the length, from `start` to `end`."""

    def rate(tokens: int) -> float:
        return high + (low - high) * min(1.0, max(0.0, math.log(tokens / start) / math.log(end / start)))

    return rate


def dip(high: float, low: float, start: int, end: int) -> Truth:
    return lambda tokens: low if start <= tokens <= end else high
