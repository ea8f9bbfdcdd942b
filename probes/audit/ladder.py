"""Which length to ask next, and when it is decided: the sequential design, without prompts, models or sockets.

    1. baseline at the shortest length; an exact upper limit below 0.60 → unusable
    2. thresholds from it: good = min(0.97, 0.97 base), bad = 0.75 base
    3. each rung: Wald's test of good against bad, confirmed by fresh trials when the first round does not say good
       (bad + bad = bad; one good and no bad = good; else undecided)
    4. ascending, stopping at the first rung that is not good: "maintained to N" then needs no correction for many rungs;
       a bad rung is followed by one rung above, and tested a third time if that one is good (a dip is claimed, not stumbled on)
    5. between the last good and the first bad: geometric bisection until their ratio is at most 1.25
    quick, brief: the top rung first, wider errors, 6 (24) trials a round at most; blind to dips, so the verdict says
    "assuming monotone"

`Ladder.run` is a generator: it yields `AskTrial` and is sent True, False or None (invalid: says nothing); `AskHeader` and
`AskLate`, sent whether the first line and a fact at the very end were still known. Error rates: benchmarks/bench_audit.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from probes.stats.fits import logit_slope
from probes.stats.intervals import upper_limit
from probes.stats.sequential import Sprt

__all__ = ["AskHeader", "AskLate", "AskTrial", "Decision", "Design", "Ladder", "RungState", "Verdict"]

Decision = Literal["ok", "bad", "undecided", "invalid", "baseline"]
VerdictKind = Literal[
    "maintained", "limit not reached", "cliff", "gradual decline", "non-monotone", "inconclusive", "unusable baseline", "invalid"
]


@dataclass(frozen=True, slots=True)
class Design:
    """The rule's numbers. Lengths in tokens."""

    base_tokens: int
    rungs: tuple[int, ...]  # ascending, above the base
    baseline_trials: int = 40
    at_least: int = 6
    at_most: int = 48
    alpha: float = 0.05
    beta: float = 0.05
    top_first: bool = False
    finest_ratio: float = 1.25
    invalid_limit: int = 3
    headers: int = 2
    fixed: int | None = None  # exactly so many trials a rung, no stopping: for paired comparison of two models

    @classmethod
    def standard(cls, rungs: tuple[int, ...], base_tokens: int = 512, *, deep: bool = False) -> Design:
        return cls(base_tokens, rungs, at_most=96 if deep else 48)

    @classmethod
    def quick(cls, rungs: tuple[int, ...], base_tokens: int = 512) -> Design:
        return cls(base_tokens, rungs, baseline_trials=12, at_most=6, alpha=0.2, beta=0.2, top_first=True, headers=1)

    @classmethod
    def brief(cls, rungs: tuple[int, ...], base_tokens: int = 512) -> Design:
        """Between the two: the top rung at once, errors of 10 %; what stands beside the origin's single trials."""
        return cls(base_tokens, rungs, baseline_trials=20, at_most=24, alpha=0.1, beta=0.1, top_first=True, headers=1)

    @classmethod
    def paired(cls, rungs: tuple[int, ...], base_tokens: int, n: int) -> Design:
        return cls(base_tokens, rungs, baseline_trials=n, at_least=n, at_most=n, fixed=n)


@dataclass(frozen=True, slots=True)
class AskTrial:
    target: int
    index: int  # counts through the rounds of a rung: the same (target, index) is the same question for every model


@dataclass(frozen=True, slots=True)
class AskHeader:
    target: int
    index: int


@dataclass(frozen=True, slots=True)
class AskLate:
    """A fact at the very end of the prompt: what survives when a server cuts the front."""

    target: int
    index: int


LadderStep: TypeAlias = AskTrial | AskHeader | AskLate
Steps: TypeAlias = Generator[LadderStep, bool | None, None]


@dataclass(slots=True)
class RungState:
    target: int
    n: int = 0
    correct: int = 0
    invalid: int = 0
    asked: int = 0
    rounds: int = 0
    decision: Decision = "undecided"
    header_lost: bool = False

    @property
    def rate(self) -> float:
        return self.correct / self.n if self.n else math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ladder supports."""

    kind: VerdictKind
    maintained: int | None = None  # the longest length of an unbroken row of good rungs
    between: tuple[int, int] | None = None  # last good, first bad
    more_needed: int | None = None
    assuming_monotone: bool = False


@dataclass(slots=True)
class Ladder:
    """One climb. `rungs` holds what was seen, whatever happened; `verdict()` may be asked at any time."""

    design: Design
    rungs: dict[int, RungState] = field(default_factory=dict)
    test: Sprt | None = None
    base: float | None = None
    finished: bool = False

    def run(self) -> Steps:
        """Ask until the verdict stands."""
        baseline = self._rung(self.design.base_tokens)
        baseline.decision, baseline.rounds = "baseline", 1
        while baseline.n < self.design.baseline_trials and baseline.invalid < self.design.invalid_limit:
            yield from self._trial(baseline)
        if baseline.invalid >= self.design.invalid_limit:
            baseline.decision = "invalid"
            self.finished = True
            return
        self.base = (baseline.correct + 0.5) / (baseline.n + 1)
        if not self.unusable:
            self.test = Sprt(
                min(0.97, 0.97 * self.base),
                0.75 * self.base,
                self.design.alpha,
                self.design.beta,
                self.design.at_least,
                self.design.at_most,
            )
            if self.design.fixed is not None:
                yield from self._every_rung(self.design.fixed)
            else:
                yield from self._from_the_top() if self.design.top_first else self._ascend()
        self.finished = True

    @property
    def unusable(self) -> bool:
        found = self.rungs.get(self.design.base_tokens)
        return found is not None and found.n > 0 and upper_limit(found.correct, found.n) < 0.60

    def _rung(self, target: int) -> RungState:
        return self.rungs.setdefault(target, RungState(target))

    def _trial(self, rung: RungState) -> Steps:
        found = yield AskTrial(rung.target, rung.asked)
        rung.asked += 1
        if found is None:
            rung.invalid += 1
        else:
            rung.n += 1
            rung.correct += found

    def _round(self, rung: RungState) -> Generator[LadderStep, bool | None, Decision]:
        """One sequential test with fresh trials."""
        assert self.test is not None
        rung.rounds += 1
        before_n, before_correct, before_invalid = rung.n, rung.correct, rung.invalid
        while True:
            yield from self._trial(rung)
            if rung.invalid - before_invalid >= self.design.invalid_limit:
                return "invalid"
            judged = self.test.judge(rung.correct - before_correct, rung.n - before_n)
            if judged != "go on":
                return "ok" if judged == "good" else "bad" if judged == "bad" else "undecided"

    def _decide(self, target: int) -> Generator[LadderStep, bool | None, Decision]:
        rung = self._rung(target)
        first = yield from self._round(rung)
        if first != "invalid" and (yield from self._header_lost(rung)):
            first = "invalid"
        if first in ("ok", "invalid"):
            rung.decision = first
            return first
        second = yield from self._round(rung)
        rung.decision = self._together(rung, first, second)
        return rung.decision

    def _together(self, rung: RungState, first: Decision, second: Decision) -> Decision:
        assert self.test is not None
        if second == "invalid":
            return "invalid"
        if first == "bad" and second == "bad":
            return "bad"
        if "bad" not in (first, second) and "ok" in (first, second):
            return "ok"
        pooled = self.test.evidence(rung.correct, rung.n)
        return "ok" if pooled >= self.test.bound_good else "undecided"

    def _header_lost(self, rung: RungState) -> Generator[LadderStep, bool | None, bool]:
        """Was the front cut off? The first line is lost on every try while facts at the very end survive. A model that
        merely forgets loses the late facts too, so the second test clears it within two or three trials."""
        tries = self.design.headers + 1
        for index in range(tries):
            if (yield AskHeader(rung.target, index)) is not False:
                return False
        wrong = right = 0
        while right < 4:
            if (yield AskLate(rung.target, right + wrong)):
                right += 1
            else:
                wrong += 1
            if wrong > 1:
                return False
        for index in range(tries, tries + 2):
            if (yield AskHeader(rung.target, index)) is not False:
                return False
        rung.header_lost = True
        return True

    def _ascend(self) -> Steps:
        good = self.design.base_tokens
        for place, target in enumerate(self.design.rungs):
            decision = yield from self._decide(target)
            if decision == "ok":
                good = target
                continue
            if decision == "bad" and place + 1 < len(self.design.rungs):
                above = self.design.rungs[place + 1]
                if (yield from self._decide(above)) == "ok":
                    third = yield from self._round(self._rung(target))
                    if third != "bad":
                        self._rung(target).decision = "ok" if third == "ok" else "undecided"
                        if third == "ok":
                            good = target
                            continue
            if decision == "bad" and self._rung(target).decision == "bad" and not self._dips(target):
                yield from self._bisect(good, target)
            return

    def _every_rung(self, n: int) -> Steps:
        assert self.test is not None
        for target in self.design.rungs:
            rung = self._rung(target)
            rung.rounds = 1
            while rung.n < n and rung.invalid < self.design.invalid_limit:
                yield from self._trial(rung)
            if rung.invalid >= self.design.invalid_limit:
                rung.decision = "invalid"
            else:
                judged = self.test.judge(rung.correct, rung.n)
                rung.decision = "ok" if judged == "good" else "bad" if judged == "bad" else "undecided"

    def _dips(self, target: int) -> bool:
        return any(rung.decision == "ok" and rung.target > target for rung in self.rungs.values())

    def _from_the_top(self) -> Steps:
        if not self.design.rungs:
            return
        top = self.design.rungs[-1]
        if (yield from self._decide(top)) == "bad":
            yield from self._bisect(self.design.base_tokens, top)

    def _bisect(self, good: int, bad: int) -> Steps:
        while bad / good > self.design.finest_ratio:
            middle = round(math.sqrt(good * bad))
            if middle in (good, bad):
                return
            decision = yield from self._decide(middle)
            if decision == "ok":
                good = middle
            elif decision == "bad":
                bad = middle
            else:
                return

    def verdict(self) -> Verdict:
        """What is shown so far."""
        monotone = self.design.top_first
        ordered = [self.rungs[target] for target in sorted(self.rungs)]
        if any(rung.decision == "invalid" for rung in ordered):
            return Verdict("invalid", self._maintained(ordered), assuming_monotone=monotone)
        if self.base is None:
            return Verdict("inconclusive", more_needed=self._baseline_left())
        if self.unusable:
            return Verdict("unusable baseline")
        above = [rung for rung in ordered if rung.target > self.design.base_tokens and rung.rounds]
        maintained = self._maintained(ordered)
        bad = [rung for rung in above if rung.decision == "bad"]
        low = maintained or self.design.base_tokens
        if bad:
            first = bad[0]
            between = (low, first.target)
            if any(rung.decision == "ok" and rung.target > first.target for rung in above) and not monotone:
                return Verdict("non-monotone", maintained, between)
            kind: VerdictKind = "gradual decline" if self._gradual(ordered) else "cliff"
            return Verdict(kind, maintained, between, None, monotone)
        undecided = [rung for rung in above if rung.decision == "undecided"]
        if undecided:
            rung = undecided[0]
            between = (low, rung.target)
            if self._gradual(ordered):
                return Verdict("gradual decline", maintained, between, None, monotone)
            more = self.test.more_needed(rung.correct, rung.n) if self.test is not None else None
            return Verdict("inconclusive", maintained, between, more, monotone)
        everything = bool(self.design.rungs) and maintained == self.design.rungs[-1]
        return Verdict("limit not reached" if everything else "maintained", maintained, assuming_monotone=monotone)

    def _baseline_left(self) -> int:
        found = self.rungs.get(self.design.base_tokens)
        return self.design.baseline_trials - (found.n if found else 0)

    def _maintained(self, ordered: list[RungState]) -> int | None:
        """Up to the first rung that is not good; where the top was tested first, the longest good one."""
        best = None
        for rung in ordered:
            if rung.decision in ("ok", "baseline"):
                best = rung.target
            elif not self.design.top_first or rung.decision == "bad":
                break
        return best

    def _gradual(self, ordered: list[RungState]) -> bool:
        """Accuracy falls over log length (99 %), no step between neighbours is a fall of more than a quarter, and the lowest
        rung lies below the good threshold for certain."""
        seen = [rung for rung in ordered if rung.n >= self.design.at_least]
        if len(seen) < 4 or self.test is None:
            return False
        slope = logit_slope([math.log2(r.target) for r in seen], [r.correct for r in seen], [r.n for r in seen], 0.98)
        steps = [before.rate - after.rate for before, after in itertools.pairwise(seen)]
        lowest = min(seen, key=lambda rung: rung.rate)
        certain = upper_limit(lowest.correct, lowest.n, 0.99) < self.test.good
        return slope is not None and slope.interval.hi < 0 and max(steps) <= 0.25 and certain
