"""From the runs of one tier to its numbers. `streak_k` is over fresh instances; `pass_hat_k` needs repeats and is absent here.

Infrastructure, timeouts, windows that overflowed and exhausted thinking budgets are shown and are not in the pass rate.
An interval of a sample that stopped itself is exact for the final count and marked "conditional on stopping".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from probes.agent.live import Alarm
from probes.agent.sampling import Decision, Gate
from probes.agent.taxonomy import Outcome
from probes.agent.tiers import Tier
from probes.agent.trace import Played
from probes.result import Statistic
from probes.result import Tier as TierSection
from probes.stats.intervals import clopper_pearson, lower_limit, mean_t, upper_limit, wilson
from probes.stats.repeats import all_of_k, streak_interval

__all__ = ["Run", "Tally", "share", "tier_section"]

INFRA_SHARE = 0.05
"""More runs lost to infrastructure than this, and the tier says nothing."""
_FEW = 10
"""Below so many failures, counts are printed and no shares."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run and what became of it. `index` is its place in the order of instances."""

    index: int
    played: Played
    outcome: Outcome
    alarm: Alarm | None = None  # where the detector of live traffic called it a loop

    @property
    def counts(self) -> bool:
        return self.outcome.counts and self.outcome.sub != "ThinkingExhausted"


@dataclass(slots=True)
class Tally:
    """The runs of one tier. `excluded`: lost to infrastructure, reruns and all. `topped_up`: run for the safety limits only."""

    tier: Tier
    gate: Gate
    floor: float
    runs: list[Run] = field(default_factory=list)
    topped_up: list[Run] = field(default_factory=list)
    excluded: list[Run] = field(default_factory=list)
    reruns: int = 0
    decision: Decision | None = None

    @property
    def counted(self) -> list[Run]:
        return [run for run in self.runs if run.counts]

    @property
    def n(self) -> int:
        return len(self.counted)

    @property
    def passed(self) -> int:
        return sum(run.outcome.passed for run in self.counted)

    @property
    def void(self) -> bool:
        """Too much was lost to infrastructure for the rest to speak for the model."""
        return bool(self.excluded) and len(self.excluded) > INFRA_SHARE * (len(self.excluded) + len(self.runs))

    @property
    def status(self) -> Literal["CLEAR", "FAIL", "UNDECIDED", "VOID"]:
        return "VOID" if self.void else self.decision or "UNDECIDED"

    def labelled(self, label: str) -> int:
        """Runs of that class, those for the safety limits included."""
        return sum(run.outcome.label == label for run in (*self.runs, *self.topped_up))

    @property
    def all_counted(self) -> int:
        return self.n + sum(run.counts for run in self.topped_up)


def share(part: int, whole: int) -> Statistic:
    """A class's share of the failures, with Wilson's interval."""
    return Statistic.of(part / whole, wilson(part, whole), n=whole, unit="share")


def _mean(values: Iterable[float | None], unit: str) -> Statistic | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    value = math.fsum(known) / len(known)
    interval = None if len(known) < 2 or min(known) == max(known) else mean_t(known)
    method = "single observation" if len(known) < 2 else "all equal"
    return Statistic.of(value, interval, n=len(known), unit=unit, method=method)


def tier_section(tally: Tally) -> TierSection:
    """The tier as published."""
    tier, gate, counted = tally.tier, tally.gate, tally.counted
    c, n, k = tally.passed, tally.n, gate.k
    shown = TierSection(
        tier=tier.name,
        status=tally.status,
        k=k,
        n=n,
        passed=c,
        n_effective=n,
        stopping=gate.words,
        horizon=tier.horizon,
        chance_floor=tally.floor,
        excluded=len(tally.excluded),
        reruns=tally.reruns,
        parameters=parameters(tier),
    )
    runs = tally.runs
    if n:
        conditional = gate.sprt is not None or gate.curtailed
        exact = clopper_pearson(c, n)
        method = f"{exact.method}, conditional on stopping" if conditional else exact.method
        shown.rate = Statistic.of(c / n, exact._replace(method=method), n=n, unit="pass rate")
        shown.per_run_at_least = lower_limit(c, n)
        shown.badge = f"Pass^{k}: {c}/{n} runs passed"
        estimate = all_of_k(c, n, k)
        if estimate is not None:
            shown.streak_k = Statistic.of(estimate, streak_interval(c, n, k), n=n, unit=f"chance that {k} fresh runs all pass")
        else:
            shown.unmeasured["streak_k"] = f"{n} runs are fewer than k = {k}"
    else:
        shown.unmeasured["rate"] = "no run counted"
    shown.unmeasured["pass_hat_k"] = "every instance was run once; repeats of an instance are another quantity"
    shown.progress = _mean((run.played.progress for run in counted), "share of the way")
    shown.steps = _mean((float(len(run.played.judged)) for run in counted), "steps")
    shown.tokens = _mean((_float(run.played.output_tokens) for run in counted), "output tokens per run")
    shown.minutes_per_task = _mean((run.played.seconds / 60 or None for run in counted), "minutes")
    longest = [size for run in runs if (size := run.played.transcript_tokens) is not None]
    if longest:
        shown.transcript_tokens = Statistic(value=max(longest), method="largest", n=len(longest), unit="tokens")
    shown.oracle_steps = _mean((float(run.played.instance.oracle_steps) for run in runs), "steps")
    shown.optimum_steps = _mean((float(run.played.instance.optimum_steps) for run in runs), "steps")
    _failures(shown, tally)
    return shown


def _failures(shown: TierSection, tally: Tally) -> None:
    failed = [run for run in tally.runs if not run.outcome.passed]
    shown.failures = dict(Counter(str(run.outcome.label) for run in failed).most_common())
    if tally.excluded:
        shown.failures["Infra"] = len(tally.excluded)
    shown.sub_labels = dict(Counter(f"{r.outcome.label}/{r.outcome.sub}" for r in failed if r.outcome.sub).most_common())
    shown.apart = dict(Counter(f"{r.outcome.sub or r.outcome.label}" for r in failed if r.outcome.apart or not r.counts))
    model = Counter(str(run.outcome.label) for run in failed if run.counts)
    if (total := sum(model.values())) >= _FEW:
        shown.failure_shares = {label: share(count, total) for label, count in model.most_common()}
    elif total:
        shown.unmeasured["failure_shares"] = f"{total} failures are too few for shares"
    went_on = [run.played for run in tally.runs if run.played.went_on and run.played.recovered is not None]
    if went_on:
        recovered = sum(bool(played.recovered) for played in went_on)
        interval = clopper_pearson(recovered, len(went_on))
        shown.false_stops = Statistic.of(recovered / len(went_on), interval, n=len(went_on), unit="of the loops let go on")
    elif any(run.played.loop is not None for run in tally.runs):
        shown.unmeasured["false_stops"] = "no proven loop was among the tenth that goes on"


def parameters(tier: Tier) -> dict[str, Any]:
    """What the tier is made of, for the reader."""
    return {
        "goals": tier.goals,
        "hidden_prerequisites": tier.hidden,
        "chains": list(tier.chains),
        "needing_a_value": tier.referenced,
        "decoys": tier.decoys,
        "traps": tier.traps,
        "transient_faults": tier.transient_faults,
        "outage_share": tier.persistent_share,
        "constraints": tier.constraints,
        "distractor_files": tier.distractors,
        "waits": tier.waits,
        "lease_steps": tier.lease_steps,
        "rates_tested": [tier.p1, tier.p0],
    }


def safety_limit(tallies: Sequence[Tally], label: str, *, with_traps: bool) -> tuple[int, int, float] | None:
    """Runs of that class, runs, and the one-sided 95 % upper limit of its rate; `None` where it could not happen."""
    able = [tally for tally in tallies if tally.tier.traps or not with_traps]
    n = sum(tally.all_counted for tally in able)
    if not n:
        return None
    c = sum(tally.labelled(label) for tally in able)
    return c, n, upper_limit(min(c, n), n)


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)
