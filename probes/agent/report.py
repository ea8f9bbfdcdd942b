"""The Agent Report as a probe: tiers from easy to hard, each until its gate has decided; then the safety limits; then words.

Runs are made one after the other. One lost to infrastructure is played again on the same instance, twice at most, and then
left out. Stopped early, the report concludes from what it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field

from probes.agent.chance import chance_floor
from probes.agent.compat import CompatTally, compat_runs
from probes.agent.dialogue import Conduct, Path, sent_options, window_bound
from probes.agent.generator import GENERATOR_VERSION, generate
from probes.agent.live import live_alarm
from probes.agent.plan import Plan
from probes.agent.replay import replay, stopped_at
from probes.agent.run import play_run
from probes.agent.sampling import CAP, gate_for, goes_on_after_loop, instance_seed
from probes.agent.scoring import Run, Tally, tier_section
from probes.agent.taxonomy import Outcome, judge
from probes.agent.tiers import TIERS, Tier
from probes.agent.trace import Played
from probes.agent.verdict import advice, boundary, hardware, live_detector, loop_cost, safety, verdict
from probes.ask import Answer, Note, Probe, Step, Stopped
from probes.result import ORIGIN_LABELS, AgentSection
from probes.result import Tier as TierSection
from probes.survey import Survey, survey

__all__ = ["Seen", "conclude", "report_agent"]

RERUNS = 2
_HOPELESS = 8
"""So many runs of which none counts (timeouts, exhausted thinking), and the tier is given up as undecided."""


@dataclass(slots=True)
class Seen:
    """Everything that was observed, complete or not; what `conclude` speaks from and replays are made of."""

    survey: Survey | None = None
    by_path: dict[Path, list[Tally]] = field(default_factory=dict)
    compat: CompatTally | None = None
    stopped: Stopped | None = None

    def runs(self) -> list[Run]:
        """All runs: of each tier those that count, those for the safety limits, those lost to infrastructure.

        A run's key names it: `agent/native/hard/3/0` is the first try of the fourth instance of Hard.
        """
        tallies = [tally for found in self.by_path.values() for tally in found]
        return [run for tally in tallies for run in (*tally.runs, *tally.topped_up, *tally.excluded)]

    def walk(self, key: str) -> dict[str, object] | None:
        """The replay of the run whose key begins so; `None` if there is none."""
        run = next((run for run in self.runs() if run.played.key.startswith(key)), None)
        return replay(run.played, run.outcome) if run is not None else None


def report_agent(plan: Plan, seen: Seen | None = None) -> Probe[AgentSection]:
    """Test a model as an agent. Raises SettingsError for a model that cannot be probed. `seen` may be looked at afterwards."""
    seen = Seen() if seen is None else seen
    try:
        seen.survey = yield from survey(plan.model, plan.endpoint)
        if plan.compat == "quantamind":
            conduct = _conduct(plan, seen.survey, _paths(plan, seen.survey)[0])
            seen.compat = CompatTally(conduct=conduct)
            yield from compat_runs(seen.compat, conduct, [tier.name for tier in plan.tiers])
        if plan.ours:
            for path in _paths(plan, seen.survey):
                seen.by_path[path] = []
                yield from _ladder(plan, _conduct(plan, seen.survey, path), seen.by_path[path])
    except Stopped as stop:
        seen.stopped = stop
    return conclude(plan, seen)


def _paths(plan: Plan, found: Survey) -> list[Path]:
    can = not found.target.capabilities or "tools" in found.target.capabilities
    if plan.path == "both":
        return ["native", "prompt-json"] if can else ["prompt-json"]
    if plan.path == "auto":
        return ["native" if can else "prompt-json"]
    return [plan.path]


def _conduct(plan: Plan, found: Survey, path: Path) -> Conduct:
    thinks = "thinking" in found.target.capabilities
    think = plan.think if plan.think is not None else (True if thinks else None)
    window, advertised = plan.window_tokens, found.target.advertised_context_tokens
    return Conduct(
        model=plan.model,
        path=path,
        think=think if thinks else None,
        window_tokens=window,
        window_most=advertised,
        temperature=plan.temperature,
        turn_limit_s=plan.turn_limit_s,
    )


def _ladder(plan: Plan, conduct: Conduct, tallies: list[Tally]) -> Generator[Step, Answer, None]:
    for tier in plan.tiers:
        gate = gate_for(tier, k=plan.k, strict=plan.strict_k, quick=plan.quick)
        tally = Tally(tier, gate, chance_floor(tier.name))
        tallies.append(tally)
        while tally.decision is None:
            index = len(tally.runs) + len(tally.excluded)
            run = yield from _play(plan, conduct, tally, index)
            (tally.runs if run.outcome.label != "Infra" else tally.excluded).append(run)
            tally.decision = gate.decide(tally.passed, tally.n)
            if tally.decision is None and (index + 1 >= gate.cap or (not tally.n and index + 1 >= _HOPELESS)):
                tally.decision = "UNDECIDED"
            yield Note(_standing(tallies, run), *_places(plan, tallies))
        if tally.status == "FAIL" and not plan.all_tiers:
            break
    if not plan.quick and not plan.strict_k:
        yield from _top_up(plan, conduct, tallies)


def _top_up(plan: Plan, conduct: Conduct, tallies: list[Tally]) -> Generator[Step, Answer, None]:
    """When every tier clears, go on until the safety limits hold or cannot: a gate's dozen runs are too few for them."""
    if not tallies or len(tallies) < len(plan.tiers) or any(tally.status != "CLEAR" for tally in tallies):
        return
    last = tallies[-1]
    while len(last.topped_up) < CAP:
        missing = [limit for limit in safety(tallies) if not limit.holds]
        if not missing or any(limit.seen > 1 for limit in missing):
            return
        index = len(last.runs) + len(last.excluded) + len(last.topped_up)
        run = yield from _play(plan, conduct, last, index)
        (last.topped_up if run.outcome.label != "Infra" else last.excluded).append(run)
        seen = f"{last.tier.name}: run {len(last.topped_up)} of at most {CAP} for the safety limits"
        yield Note(f"{seen}; {boundary(tallies)}", *_places(plan, tallies))


def _play(plan: Plan, conduct: Conduct, tally: Tally, index: int) -> Generator[Step, Answer, Run]:
    tier = tally.tier
    instance = generate(tier, instance_seed(plan.seed, tier.name, index))
    goes_on = goes_on_after_loop(plan.seed, tier.name, index)
    for attempt in range(RERUNS + 1):
        tally.reruns += attempt > 0
        key = f"agent/{conduct.path}/{tier.name}/{index}/{attempt}"
        played: Played = yield from play_run(instance, conduct, key, go_on=goes_on)
        outcome = judge(played)
        if outcome.label != "Infra":
            break
    return Run(index, played, outcome, live_alarm(played))


def _standing(tallies: list[Tally], run: Run) -> str:
    """The last run, its tier's count, and the verdict as it would be now."""
    tally = tallies[-1]
    what = "pass" if run.outcome.passed else str(run.outcome.label)
    end = f": {tally.status}" if tally.decision is not None else ""
    decided = [one for one in tallies if one.decision is not None]
    so_far = f"; so far {boundary(decided).partition('; ')[0]}" if decided else ""
    return f"{tally.tier.name}: {what} after {len(run.played.steps)} steps; {tally.passed} of {tally.n} passed{end}{so_far}"


def _places(plan: Plan, tallies: list[Tally]) -> tuple[int, int]:
    """Runs made, and runs that there may be at most: a decided tier asks for no more."""
    made = sum(len(tally.runs) + len(tally.excluded) + len(tally.topped_up) for tally in tallies)
    open_tier = tallies[-1]
    left = 0 if open_tier.decision is not None else open_tier.gate.cap - len(open_tier.runs) - len(open_tier.excluded)
    if plan.all_tiers or open_tier.status in ("CLEAR", "UNDECIDED", "VOID"):
        caps = [gate_for(tier, k=plan.k, strict=plan.strict_k, quick=plan.quick).cap for tier in plan.tiers]
        left += sum(caps[len(tallies) :])
    return made, max(made, made + left)


# --- concluding ---------------------------------------------------------------------------------------------------------


def conclude(plan: Plan, seen: Seen) -> AgentSection:
    """The section, from what was seen."""
    sections = [_section(plan, path, seen, tallies) for path, tallies in seen.by_path.items()]
    if not sections:
        why = str(seen.stopped) if seen.stopped else "only the origin's sampling was asked for"
        word = AgentSection(verdict="INSUFFICIENT DATA", sentence=f"No tier was tested: {why}.")
        word.generator_version = GENERATOR_VERSION
        word.hardware_class, word.recommended_tier = hardware(plan.host)
        word.tiers = [_untested(tier, why) for tier in TIERS]
        _say_stopped(word, seen)
        return word
    section = sections[0]
    if len(sections) > 1:
        section.other_path = sections[1]
    _say_stopped(section, seen)
    return section


def _say_stopped(section: AgentSection, seen: Seen) -> None:
    if seen.stopped is not None:
        section.unmeasured["rest"] = f"stopped early ({seen.stopped.reason}): {seen.stopped.detail}"


def _conducted(plan: Plan, path: Path, seen: Seen, tallies: list[Tally]) -> dict[str, object]:
    """How the runs were made, for whoever wants to make them again."""
    if seen.survey is None:
        return {}
    conduct = _conduct(plan, seen.survey, path)
    return {
        "thinking": conduct.think,
        "temperature": conduct.temperature,
        "turn_tokens": conduct.turn_tokens,
        "thinking_tokens": conduct.thinking_tokens if conduct.think else 0,
        "turn_limit_s": conduct.turn_limit_s,
        "window_tokens": {t.tier.name: conduct.window_tokens or window_bound(t.tier, conduct) for t in tallies},
        "seed": plan.seed,
        "options": {
            **{name: value for name, value in sent_options(conduct).items() if name != "seed"},
            "num_ctx": ", ".join(f"{conduct.window_tokens or window_bound(t.tier, conduct)} ({t.tier.name})" for t in tallies),
        },
    }


def _section(plan: Plan, path: Path, seen: Seen, tallies: list[Tally]) -> AgentSection:
    found = verdict([tally for tally in tallies if tally.runs or tally.excluded])
    name, recommended = hardware(plan.host)
    by_name = {tally.tier.name: tally for tally in tallies}
    why = "a tier below failed" if any(tally.status == "FAIL" for tally in tallies) else "not asked for"
    runs = [run for tally in tallies for run in tally.runs]
    section = AgentSection(
        verdict=found.word,
        sentence=f"{found.boundary[:1].upper()}{found.boundary[1:]}.",
        boundary=found.boundary,
        generator_version=GENERATOR_VERSION,
        path=path,
        tiers=[
            tier_section(by_name[tier.name])
            if tier.name in by_name
            else _untested(tier, why if tier in plan.tiers else "not asked for")
            for tier in TIERS
        ],
        reasons=found.reasons,
        advice=advice(tallies),
        hardware_class=name,
        recommended_tier=recommended,
        ready_for=found.ready_for,
        safety=[{**limit._asdict(), "holds": limit.holds} for limit in safety(tallies)],
        runs=_runs(tallies),
        conduct=_conducted(plan, path, seen, tallies),
        origin_labels=dict(Counter(ORIGIN_LABELS[str(r.outcome.label)] for r in runs if r.outcome.label in ORIGIN_LABELS)),
        live_detector=live_detector(runs),
        loop_cost=loop_cost(runs),
        replays=_replays(tallies),
    )
    if name is None:
        section.unmeasured["hardware_class"] = "the memory of the machine that runs the model is unknown"
    return section


def _untested(tier: Tier, why: str) -> TierSection:
    shown = TierSection(tier=tier.name, status="NOT TESTED", k=tier.k, horizon=tier.horizon)
    shown.unmeasured["rate"] = why
    return shown


def _replays(tallies: list[Tally]) -> list[dict[str, object]]:
    """The first run of each class of each tier, and the first that passed: enough to see what happens."""
    kept: list[dict[str, object]] = []
    for tally in tallies:
        seen: set[str] = set()
        for run in tally.runs:
            label = _label(run.outcome)
            if label not in seen:
                seen.add(label)
                kept.append(replay(run.played, run.outcome))
    return kept


def _runs(tallies: list[Tally]) -> list[dict[str, object]]:
    """Every run in a line: what became of it, and by which steps that is shown. `role`: safety and infra are in no pass rate."""
    return [
        {
            "run": run.played.key,
            "tier": tally.tier.name,
            "role": role if run.counts or role != "counted" else "apart",
            "outcome": _label(run.outcome),
            "sub": run.outcome.sub,
            "why": run.outcome.why,
            "evidence_steps": list(run.outcome.steps),
            "steps": len(run.played.judged),
            "oracle_steps": run.played.instance.oracle_steps,
            "progress": round(run.played.progress, 3),
            "stopped_at": stopped_at(run.played),
            "output_tokens": run.played.output_tokens,
            "seconds": round(run.played.seconds, 3),
            "went_on_after_loop": run.played.went_on,
            "recovered": run.played.recovered,
        }
        for tally in tallies
        for role, runs in (("counted", tally.runs), ("safety", tally.topped_up), ("infra", tally.excluded))
        for run in runs
    ]


def _label(outcome: Outcome) -> str:
    return "PASS" if outcome.passed else str(outcome.label)
