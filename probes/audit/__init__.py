"""Where a model's context stops working: the Audit.

`audit(plan)` is the probe. The headline is the pooled accuracy over families and depths against the model's own baseline;
families and depths are listed beside it. Lengths are the model's own tokens.
"""

from __future__ import annotations

import math
from collections import Counter

from probes.ask import Probe, Stopped
from probes.audit.haystack import STRATA
from probes.audit.ladder import Ladder, RungState, Verdict
from probes.audit.plan import AuditCost, AuditPlan, audit_cost, audit_plan
from probes.audit.trials import Observed, Trials
from probes.padding import GRAMMAR_VERSION
from probes.result import AuditSection, Depth, FamilyScore, Rung, Statistic, TrialRow
from probes.stats.intervals import wilson

__all__ = ["AuditCost", "AuditPlan", "Trials", "audit", "audit_cost", "audit_plan", "conclude_audit"]


def audit(plan: AuditPlan, trials: Trials | None = None) -> Probe[AuditSection]:
    """Climb the ladder; stopped early, conclude from what there is. `trials` may be passed in to look at afterwards."""
    trials = Trials(plan, Ladder(plan.design)) if trials is None else trials
    try:
        yield from trials.climb()
    except Stopped as stop:
        trials.stopped = stop
    return conclude_audit(trials)


def conclude_audit(trials: Trials) -> AuditSection:
    """The section that these observations support."""
    plan, ladder = trials.plan, trials.ladder
    verdict = ladder.verdict()
    measured = {target: _mean_tokens(trials, target) for target in ladder.rungs}
    maintained = _tokens(measured, verdict.maintained)
    between = None
    if verdict.between is not None:
        between = (
            _tokens(measured, verdict.between[0]) or verdict.between[0],
            _tokens(measured, verdict.between[1]) or verdict.between[1],
        )
    section = AuditSection(
        verdict=verdict.kind,
        sentence=_sentence(plan, ladder, verdict, maintained, between, trials),
        maintained_tokens=maintained,
        cliff_between=between if verdict.kind in ("cliff", "gradual decline", "non-monotone") else None,
        more_needed=verdict.more_needed,
        assuming_monotone=verdict.assuming_monotone,
        padding=[f"{register} (grammar {GRAMMAR_VERSION})" for register in plan.registers],
        padding_repetition=max(trials.repetition) if trials.repetition else None,
        window_tokens=plan.window_tokens,
        guard=dict(trials.guard),
        prompt_tokens=trials.prompt_tokens,
        thinking=plan.think,
    )
    baseline = ladder.rungs.get(plan.design.base_tokens)
    if baseline is not None and baseline.n:
        section.baseline = _share(baseline)
    else:
        section.unmeasured["baseline"] = trials.stopped.detail if trials.stopped else "no valid baseline trial"
    if ladder.test is not None:
        section.threshold_good, section.threshold_bad = ladder.test.good, ladder.test.bad
    if plan.advertised_tokens and maintained:
        section.tested_share = maintained / plan.advertised_tokens
    for target in sorted(ladder.rungs):
        rung = ladder.rungs[target]
        seen = [one for one in trials.observed if one.target == target]
        if not seen:
            continue
        section.rungs.append(
            Rung(
                target_tokens=target,
                measured_tokens=measured[target],
                n=rung.n,
                correct=rung.correct,
                accuracy=_share(rung) if rung.n else None,
                classes=dict(Counter(one.outcome for one in seen)),
                verdict=rung.decision,
                rounds=max(1, rung.rounds),
                invalid=rung.invalid,
                seconds=math.fsum(one.seconds for one in seen),
            )
        )
    section.families = _families(trials.observed)
    section.depths = _depths(trials.observed)
    section.trials = [
        TrialRow(target_tokens=one.target, index=one.index, family=one.family, stratum=one.stratum, outcome=one.outcome)
        for one in trials.observed
    ]
    return section


def _share(rung: RungState) -> Statistic:
    return Statistic.of(rung.correct / rung.n, wilson(rung.correct, rung.n), n=rung.n, unit="share")


def _mean_tokens(trials: Trials, target: int) -> float | None:
    counts = [
        one.prompt_tokens for one in trials.observed if one.target == target and one.prompt_tokens and one.outcome != "invalid"
    ]
    return sum(counts) / len(counts) if counts else None


def _tokens(measured: dict[int, float | None], target: int | None) -> int | None:
    """A rung's length as measured, where it was; the ladder speaks in targets."""
    if target is None:
        return None
    found = measured.get(target)
    return round(found) if found is not None else target


def _families(observed: list[Observed]) -> list[FamilyScore]:
    cells: dict[tuple[str, int], list[bool]] = {}
    for one in observed:
        if one.outcome not in ("invalid", "infra"):
            cells.setdefault((one.family, one.target), []).append(one.outcome == "correct")
    return [FamilyScore(family=f, target_tokens=t, n=len(v), correct=sum(v)) for (f, t), v in sorted(cells.items())]


def _depths(observed: list[Observed]) -> list[Depth]:
    made = []
    for target in sorted({one.target for one in observed}):
        for stratum in range(STRATA):
            cell = [
                one.outcome == "correct"
                for one in observed
                if one.target == target and one.stratum == stratum and one.outcome not in ("invalid", "infra")
            ]
            if cell:
                made.append(Depth(stratum=stratum, target_tokens=target, n=len(cell), correct=sum(cell)))
    return made


def _sentence(
    plan: AuditPlan, ladder: Ladder, verdict: Verdict, maintained: int | None, between: tuple[int, int] | None, trials: Trials
) -> str:
    """The verdict in one sentence, with what it was held against and what was not tested."""
    top = plan.design.rungs[-1] if plan.design.rungs else plan.design.base_tokens
    share = f" (of {plan.advertised_tokens:,} advertised: {top / plan.advertised_tokens:.1%})" if plan.advertised_tokens else ""
    monotone = ", assuming monotone" if verdict.assuming_monotone else ""
    stopped = f"; stopped: {trials.stopped.detail}" if trials.stopped else ""
    low, high = between or (plan.design.base_tokens, top)
    match verdict.kind:
        case "limit not reached":
            text = f"Accuracy maintained to ≥ {maintained:,} tokens{monotone}; limit not reached, tested to {top:,} tokens{share}"
        case "maintained":
            reached = maintained or plan.design.base_tokens
            text = f"Accuracy maintained to ≥ {reached:,} tokens{monotone}; longer prompts were not decided"
        case "cliff":
            text = f"Cliff between {low:,} and {high:,} tokens{monotone}: accuracy falls under 75 % of the model's own baseline"
        case "gradual decline":
            text = f"Gradual decline from about {low:,} tokens; not good any more by {high:,} tokens{monotone}"
        case "non-monotone":
            text = f"Not monotone: a dip at {high:,} tokens, although longer prompts are answered well"
        case "inconclusive":
            more = f"; about {verdict.more_needed} more trials would decide" if verdict.more_needed else ""
            where = f" between {low:,} and {high:,} tokens" if between else ""
            text = f"Inconclusive{where}{monotone}{more}"
        case "unusable baseline":
            base = ladder.rungs[plan.design.base_tokens]
            text = (
                f"Unusable baseline: {base.correct} of {base.n} right at {base.target} tokens already; "
                "no loss with length can be told from that"
            )
        case "invalid":
            cut = next((rung.target for rung in ladder.rungs.values() if rung.decision == "invalid"), top)
            why = (
                "the first line of the prompt is lost while later facts survive"
                if any(rung.header_lost for rung in ladder.rungs.values())
                else "the server counts fewer tokens than it was sent, or refuses them"
            )
            text = f"Invalid at {cut:,} tokens: {why}. This is truncation by the server, not forgetting by the model"
    return f"{text}{stopped}."
