"""Wald's sequential probability ratio test: stop asking when the answers have decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Sprt", "Verdict"]

Verdict = Literal["good", "bad", "undecided", "go on"]


@dataclass(frozen=True, slots=True)
class Sprt:
    """Decides between success rates `good` and `bad` (good > bad), asking at least `at_least` and at most `at_most` times.

    `alpha`: chance to call a good one bad; `beta`: chance to call a bad one good. With `at_least` the errors only shrink,
    the cap turns some decisions into "undecided". Source: Wald, Sequential Analysis (1947), chapter 3.
    """

    good: float
    bad: float
    alpha: float = 0.05
    beta: float = 0.05
    at_least: int = 0
    at_most: int = 1_000_000

    def __post_init__(self) -> None:
        if not 0 < self.bad < self.good < 1:
            raise ValueError(f"a sequential test needs 0 < bad < good < 1, not bad {self.bad} and good {self.good}")

    def evidence(self, successes: int, n: int) -> float:
        """Log likelihood ratio, good over bad: positive speaks for good."""
        return successes * math.log(self.good / self.bad) + (n - successes) * math.log((1 - self.good) / (1 - self.bad))

    @property
    def bound_good(self) -> float:
        return math.log((1 - self.alpha) / self.beta)

    @property
    def bound_bad(self) -> float:
        return math.log(self.alpha / (1 - self.beta))

    def judge(self, successes: int, n: int) -> Verdict:
        """The decision after `n` trials. "go on": ask again; "undecided": the cap is reached without a decision."""
        if n >= self.at_least:
            evidence = self.evidence(successes, n)
            if evidence >= self.bound_good:
                return "good"
            if evidence <= self.bound_bad:
                return "bad"
        return "undecided" if n >= self.at_most else "go on"

    def more_needed(self, successes: int, n: int) -> int | None:
        """How many more trials would decide if the rate stayed what it was; `None` when it points neither way."""
        rate = (successes + 0.5) / (n + 1)
        drift = rate * math.log(self.good / self.bad) + (1 - rate) * math.log((1 - self.good) / (1 - self.bad))
        if abs(drift) < 1e-3:
            return None
        evidence = self.evidence(successes, n)
        distance = (self.bound_good - evidence) if drift > 0 else (self.bound_bad - evidence)
        return max(1, math.ceil(distance / drift), self.at_least - n)
