"""Where the probes meet: one sentence, each limit with its source. Says only what was measured."""

from __future__ import annotations

from typing import Any

from probes.result import JointVerdict, Result

__all__ = ["joint_verdict"]


def joint_verdict(result: Result) -> JointVerdict:
    """ "Usable … up to N-token transcripts, M minutes per task, on this machine"."""
    limits: list[dict[str, Any]] = []
    inspected, audited, agent = result.inspector, result.audit, result.agent
    if audited is not None and audited.maintained_tokens is not None:
        limits.append({"what": "context kept", "value": audited.maintained_tokens, "unit": "tokens", "source": "audit"})
    if inspected is not None:
        ceilings = inspected.memory.ceilings
        if ceilings.spill_tokens is not None:
            limits.append(
                {"what": "fits the device", "value": round(ceilings.spill_tokens.value), "unit": "tokens", "source": "inspector"}
            )
        elif ceilings.oom_tokens is not None:
            limits.append(
                {"what": "fits memory", "value": round(ceilings.oom_tokens.value), "unit": "tokens", "source": "inspector"}
            )
        if ceilings.advertised_tokens is not None:
            limits.append({"what": "advertised", "value": ceilings.advertised_tokens, "unit": "tokens", "source": "/api/show"})
    tokens = [limit for limit in limits if limit["unit"] == "tokens"]
    least = min(tokens, key=lambda limit: int(limit["value"]), default=None)
    minutes = None
    if agent is not None:
        timed = [tier for tier in agent.tiers if tier.status == "CLEAR" and tier.minutes_per_task is not None]
        if timed and timed[-1].minutes_per_task is not None:
            minutes = timed[-1].minutes_per_task.value
            limits.append(
                {"what": "time per task", "value": minutes, "unit": "minutes", "source": f"agent, tier {timed[-1].tier}"}
            )
    return JointVerdict(sentence=_sentence(result, least, minutes), limits=limits)


def _sentence(result: Result, least: dict[str, Any] | None, minutes: float | None) -> str:
    agent = result.agent
    if agent is not None and agent.verdict in ("READY", "CONDITIONAL"):
        subject = f"Usable as an agent ({agent.boundary or agent.sentence.rstrip('.')})"
    elif agent is not None:
        subject = f"Not shown to be usable as an agent ({agent.sentence.rstrip('.')})"
    else:
        subject = "Usable (agent work not measured)"
    if least is None:
        return f"{subject}; no context limit was measured."
    reach = f" up to {int(least['value']):,}-token transcripts ({least['what']}, {least['source']})"
    if result.audit is not None and result.audit.verdict in ("limit not reached", "maintained") and least["source"] == "audit":
        reach = f" up to at least {int(least['value']):,}-token transcripts (tested no further)"
    time = f", {minutes:.1f} minutes per task" if minutes is not None else ""
    return f"{subject}{reach}{time}, on this machine."
