"""How many runs, on which instances, and when a tier is decided.

Every run has an instance of its own, drawn from the report's seed in fixed order: two models given one seed meet the same
first n instances, and n runs are n observations. Repeats of one instance belong to `--compat` and never mix with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal

from probes.agent.tiers import Tier
from probes.stats.sequential import Sprt

__all__ = ["CAP", "LEAST", "Decision", "Gate", "gate_for", "goes_on_after_loop", "instance_seed"]

Decision = Literal["CLEAR", "FAIL", "UNDECIDED"]

CAP: Final = 64
LEAST: Final = 8
"""Fewest runs of a tier, so that failures have a distribution."""
_CONTINUED: Final = 0.1


def instance_seed(seed: int, tier: str, index: int) -> int:
    """The seed of a tier's index-th instance under a report's seed."""
    return int.from_bytes(blake2b(f"{seed}/{tier}/{index}".encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF


def goes_on_after_loop(seed: int, tier: str, index: int) -> bool:
    """Is this one of the tenth of runs that go on after a proven loop, to measure how often stopping was wrong?"""
    return blake2b(f"{seed}/{tier}/{index}/go on".encode(), digest_size=2).digest()[0] < 256 * _CONTINUED


@dataclass(frozen=True, slots=True)
class Gate:
    """When a tier is decided. `sprt` is `None` for strict k: exactly k runs, all of which must pass."""

    sprt: Sprt | None
    k: int
    cap: int
    curtailed: bool = False  # strict k that may stop at its first failure

    def decide(self, passed: int, n: int) -> Decision | None:
        """`None`: go on."""
        if self.sprt is None:
            if n >= self.k or (self.curtailed and passed < n):
                return "CLEAR" if passed == n and n >= self.k else "FAIL"
            return None
        verdict = self.sprt.judge(passed, n)
        return {"good": "CLEAR", "bad": "FAIL", "undecided": "UNDECIDED", "go on": None}[verdict]

    @property
    def words(self) -> str:
        """The stopping rule, for the reader."""
        if self.sprt is None:
            tail = ", stopped at the first failure" if self.curtailed else ""
            return f"strict: exactly {self.k} runs, all must pass{tail}"
        s = self.sprt
        return (
            f"sequential: pass rate {s.good:g} against {s.bad:g}, α = {s.alpha:g}, β = {s.beta:g}, "
            f"at least {s.at_least} and at most {s.at_most} runs"
        )


def gate_for(tier: Tier, *, k: int | None = None, strict: bool = False, quick: bool = False) -> Gate:
    """The tier's gate. `quick` halves the evidence and says so in its words."""
    runs = k or tier.k
    if strict:
        return Gate(None, runs, runs, curtailed=quick)
    error, least, cap = (0.1, 4, 16) if quick else (0.05, LEAST, CAP)
    return Gate(Sprt(tier.p1, tier.p0, error, error, at_least=least, at_most=cap), runs, cap)
