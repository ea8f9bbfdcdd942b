"""The origin's numbers from its runs: tiers, verdict, hardware class, as it aggregates them; our own reading stands beside.

Read in its source (research note, section 3): a task counts when all k runs passed, a tier clears at 80 % of its tasks, the
verdict is by contiguous clears, steps are the mean of the tasks' means, and a machine's class follows from its RAM alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from probes.agent.compat import CompatRun, CompatTally, K
from probes.result import CompatRow, Host
from probes.result import Tier as TierSection
from probes.spoken import show
from probes.stats.repeats import per_instance

__all__ = ["Tier", "aggregate", "compat_rows", "headline", "ram_class"]

_BAR: Final = 0.80
_ORDER: Final = ("easy", "medium", "hard", "extreme")


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier by the origin's aggregation."""

    name: str
    k: int
    tasks: int
    strict: int  # tasks of which all k runs passed
    mean_turns: float  # of the tasks' means
    distinct: int  # different transcripts among the runs
    runs: int
    failures: dict[str, int]

    @property
    def rate(self) -> float:
        return self.strict / self.tasks

    @property
    def status(self) -> str:
        return "CLEAR" if self.rate >= _BAR else "SATURATED" if self.strict else "FAIL"


def aggregate(tally: CompatTally, name: str) -> Tier | None:
    """`None` for a tier that was not run."""
    runs = tally.of(name)
    by_task = _by_task(tally, name)
    if not by_task:
        return None
    k = K[name]
    strict = sum(len(found) >= k and all(run.passed for run in found) for found in by_task.values())
    means = [math.fsum(run.turns for run in found) / len(found) for found in by_task.values()]
    distinct = sum(len({run.trace for run in found}) for found in by_task.values())
    failures = Counter(str(run.label) for run in runs if run.label is not None)
    return Tier(name, k, len(by_task), strict, math.fsum(means) / len(means), distinct, len(runs), dict(failures.most_common()))


def _by_task(tally: CompatTally, name: str) -> dict[str, list[CompatRun]]:
    found: dict[str, list[CompatRun]] = {}
    for run in tally.of(name):
        found.setdefault(run.task, []).append(run)
    return found


def headline(tiers: Sequence[Tier]) -> tuple[str, str]:
    """Their verdict and its sentence: contiguous clears among the tiers that were run."""
    cleared: list[Tier] = []
    for tier in tiers:
        if tier.status != "CLEAR":
            break
        cleared.append(tier)
    if not tiers:
        return "NOT READY", "no tier was run"
    if not cleared:
        return "NOT READY", f"does not clear {tiers[0].name.capitalize()}, the easiest tier run"
    if len(cleared) == len(tiers):
        return "READY", f"clears every tier run, through {cleared[-1].name.capitalize()}"
    off = tiers[len(cleared)]
    return "CONDITIONAL", f"clears through {cleared[-1].name.capitalize()}; falls off at {off.name.capitalize()}"


def ram_class(host: Host) -> tuple[str, str] | None:
    """Their class of a machine, by RAM alone, and the tier they recommend for it."""
    if host.memory_bytes is None:
        return None
    gib = round(host.memory_bytes / 1024**3)
    for most, name, tier in ((15, "Constrained", "MEDIUM"), (32, "Mainstream", "MEDIUM"), (96, "Workstation", "HARD")):
        if gib <= most:
            return name, tier
    return "Frontier", "EXTREME"


def compat_rows(tally: CompatTally, host: Host, ours: Sequence[TierSection] = ()) -> tuple[list[CompatRow], dict[str, float]]:
    """The rows of the compat section and their values by stable name; our own tiers' reading stands beside each."""
    rows: list[CompatRow] = []
    values: dict[str, float] = {}
    ran = [tier for name in _ORDER if (tier := aggregate(tally, name)) is not None]
    mine = {section.tier: section for section in ours}
    for name in _ORDER:
        tier = next((tier for tier in ran if tier.name == name), None)
        beside = _ours(mine.get(name))
        if tier is None:
            rows.append(CompatRow(name=f"{name.capitalize()} tier", theirs="NOT TESTED", ours=beside))
            continue
        copies = tier.runs - tier.distinct
        note = f"{tier.strict} of {tier.tasks} tasks passed {tier.k} of {tier.k}"
        if copies:
            note += f"; {copies} of {tier.runs} runs are copies of another run of the same task: {tier.distinct} observations"
        theirs = f"{100 * tier.rate:.0f} % (Pass^{tier.k}), {tier.mean_turns:.1f} steps, {tier.status}"
        rows.append(CompatRow(name=f"{name.capitalize()} tier", theirs=theirs, ours=beside, note=note))
        values |= {f"{name}_rate": tier.rate, f"{name}_k": tier.k, f"{name}_steps": tier.mean_turns, f"{name}_runs": tier.runs}
        values[f"{name}_distinct"] = tier.distinct
        counts = [(sum(r.passed for r in runs), len(runs)) for runs in _by_task(tally, name).values()]
        if (estimate := per_instance(counts, tier.k)) is not None:
            values[f"{name}_pass_hat_k"] = estimate
    hardest = ran[-1] if ran else None
    if hardest is not None and (total := sum(hardest.failures.values())):
        parts = []
        for label, count in hardest.failures.items():
            parts.append(f"{label} {100 * count / total:.0f} % ({count})")
            values[f"{hardest.name}_{label}"] = count
        section = mine.get(hardest.name)
        beside = _ours_of_failures(section)
        note = "InfiniteLoop here includes a spent turn budget, Hallucinated any turn without a call before the goal"
        rows.append(CompatRow(name="Failure taxonomy", theirs=f"{', '.join(parts)} of {total}", ours=beside, note=note))
        values[f"{hardest.name}_failures"] = total
    word, sentence = headline(ran)
    rows.append(CompatRow(name="Verdict", theirs=f"{word}: {sentence}"))
    hardware = ram_class(host)
    if hardware is not None:
        rows.append(CompatRow(name="Hardware", theirs=f"{hardware[0]}, HW recommends {hardware[1]}", note="by RAM alone"))
    return rows, values


def _ours(section: TierSection | None) -> str | None:
    """Our own tier in one line; each number with its interval and n."""
    if section is None or section.status == "NOT TESTED":
        return None
    rate = f": {show(section.rate, percent=True)}" if section.rate is not None else ""
    steps = f"; {show(section.steps)} a run" if section.steps is not None else ""
    least = f"; per run at least {section.per_run_at_least:.2f} (95 %, one-sided)" if section.per_run_at_least is not None else ""
    return f"{section.status}: {section.passed} of {section.n} fresh instances{rate}{steps}{least}"


def _ours_of_failures(section: TierSection | None) -> str | None:
    if section is None or not section.failures:
        return None
    shares = section.failure_shares
    total = sum(section.failures.values())
    parts = [
        f"{label} {count}" + (f": {show(shares[label], percent=True)}" if label in shares else "")
        for label, count in section.failures.items()
    ]
    few = f"; {section.unmeasured['failure_shares']}" if "failure_shares" in section.unmeasured else ""
    return f"{'; '.join(parts)} (n {total}){few}"
