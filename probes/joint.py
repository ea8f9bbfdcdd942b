"""Where the probes meet: one sentence, each limit with its source. The only place that speaks it; says only what was measured."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from probes.result import AgentSection, JointVerdict, Result, Tier

__all__ = ["joint_verdict"]


_SHOWN: Final = "/api/show"


class _Reach(NamedTuple):
    """A limit on a transcript. `open_ended`: no length beyond it was tested, so it is a lower bound."""

    tokens: int
    what: str
    source: str
    open_ended: bool = False

    @property
    def words(self) -> str:
        if self.open_ended:
            return f"up to at least {self.tokens:,}-token transcripts ({self.source}: tested no further)"
        return f"up to {self.tokens:,}-token transcripts ({self.source}: {self.what})"


def joint_verdict(result: Result) -> JointVerdict | None:
    """ "Usable as an agent for easy tasks, up to N-token transcripts, M minutes per task, on this machine"; `None` when
    no probe has concluded. A tier counts only if its longest transcript fits below every limit on context."""
    if result.inspector is None and result.audit is None and result.agent is None:
        return None
    reaches, limits = _reaches(result)
    measured = any(reach.source != _SHOWN for reach in reaches)  # an advertised window alone is no evidence of anything
    least = min(reaches, key=lambda reach: reach.tokens) if measured else None
    agent = result.agent
    if (doubt := _unusable(result)) is not None and agent is None:
        return JointVerdict(sentence=f"Not shown to be usable here: {doubt}.", limits=limits)
    if agent is None:
        subject = "Usable (agent work not measured)"
        tail = f" {least.words}, on this machine." if least is not None else "; no context limit was measured."
        return JointVerdict(sentence=subject + tail, limits=limits)
    return JointVerdict(sentence=_agent_sentence(agent, least, limits), limits=limits)


def _unusable(result: Result) -> str | None:
    """What was seen that no memory and no window make up for; `None` when nothing was."""
    audited, inspected = result.audit, result.inspector
    if inspected is not None and not inspected.valid and "ttft_any" in inspected.unmeasured:
        return f"it gave no text (Inspector: {inspected.unmeasured['ttft_any']})"
    if audited is not None and audited.verdict == "unusable baseline":
        right = f", {audited.baseline.value:.0%} right" if audited.baseline is not None else ""
        return f"it does not answer short prompts (Audit: unusable baseline{right})"
    if result.run.state == "failed":
        return f"the run failed ({(result.run.reason or 'without a reason').rstrip('.')})"
    return None


def _reaches(result: Result) -> tuple[list[_Reach], list[dict[str, Any]]]:
    """What bounds a transcript, and the same as published limits."""
    found: list[_Reach] = []
    audited, inspected = result.audit, result.inspector
    if audited is not None and audited.maintained_tokens is not None:
        open_ended = audited.verdict in ("limit not reached", "maintained")
        found.append(_Reach(audited.maintained_tokens, "accuracy holds", "Audit", open_ended))
    if inspected is not None:
        ceilings = inspected.memory.ceilings
        if ceilings.spill_tokens is not None:
            found.append(_Reach(int(ceilings.spill_tokens.value), "fits the device", "Inspector"))
        elif ceilings.oom_tokens is not None:
            found.append(_Reach(int(ceilings.oom_tokens.value), "fits memory", "Inspector"))
        if ceilings.advertised_tokens is not None:
            found.append(_Reach(ceilings.advertised_tokens, "advertised", _SHOWN))
    elif result.target.advertised_context_tokens is not None and result.agent is not None:
        found.append(_Reach(result.target.advertised_context_tokens, "advertised", _SHOWN))
    limits = []
    for reach in found:
        what = f"{reach.what}, tested no further" if reach.open_ended else reach.what
        limits.append(_limit(what, reach.tokens, "tokens", reach.source))
    return found, limits


def _agent_sentence(agent: AgentSection, least: _Reach | None, limits: list[dict[str, Any]]) -> str:
    cleared = [tier for tier in agent.tiers if tier.status == "CLEAR"]
    for tier in cleared:
        if (longest := tier.transcript_tokens) is not None:
            limits.append(
                _limit(f"longest {tier.tier} transcript", int(longest.value), "tokens", f"Agent Report: {longest.n} runs")
            )
    if not cleared:
        boundary = agent.boundary or agent.sentence.rstrip(".") or "no tier was tested"
        if agent.verdict == "INSUFFICIENT DATA":
            return f"Not shown to be usable as an agent here: {boundary[:1].lower()}{boundary[1:]}."
        return f"Not usable as an agent here: it clears no tier ({boundary[:1].lower()}{boundary[1:]})."
    within = [tier for tier in cleared if _fits(tier, least)]
    if not within:
        assert least is not None
        return (
            f"Not usable as an agent here: what it clears needs longer transcripts than {least.tokens:,} tokens ({least.source})."
        )
    best = within[-1]
    span = least.words if least is not None else _as_seen(best)
    pace = "at a pace that was not measured"
    if (time := best.minutes_per_task) is not None:
        source = f"Agent Report: mean of {time.n} {best.tier} runs"
        limits.append(_limit(f"{best.tier} task", time.value, "minutes", source))
        pace = f"{_minutes(time.value)} per task ({source})"
    beyond = [tier.tier.capitalize() for tier in cleared if tier not in within]
    tail = f" {', '.join(beyond)}: cleared, but with longer transcripts than that." if beyond else ""
    return f"Usable as an agent for {best.tier} tasks, {span}, {pace}, on this machine.{tail}"


def _fits(tier: Tier, least: _Reach | None) -> bool:
    longest = tier.transcript_tokens
    return least is None or longest is None or longest.value <= least.tokens


def _as_seen(tier: Tier) -> str:
    if (longest := tier.transcript_tokens) is None:
        return "with transcripts of a length that was not measured"
    seen = f"{int(longest.value):,}-token transcripts (Agent Report: the longest of {longest.n} {tier.tier} runs"
    return f"up to {seen}; no limit on context was measured)"


def _limit(what: str, value: float, unit: str, source: str) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "source": source}


def _minutes(value: float) -> str:
    """Never "0.0 minutes": two digits that mean something."""
    return f"{value:.1f} minutes" if value >= 1 else f"{value:.2g} minutes"
