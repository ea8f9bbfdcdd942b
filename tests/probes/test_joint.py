"""The sentence names the least limit with its source, and never more than was measured."""

from __future__ import annotations

from typing import Any

from probes.joint import joint_verdict
from probes.result import AgentSection, AuditSection, InspectorSection, JointVerdict, Result, Run, Statistic, Target, Tier


def result(**sections: Any) -> Result:
    return Result(run=Run(id="i", kind="report", started_at="t", seed=1), target=Target(endpoint="e", name="m"), **sections)


def joint(made: Result) -> JointVerdict:
    verdict = joint_verdict(made)
    assert verdict is not None
    return verdict


def number(value: float, n: int = 9) -> Statistic:
    return Statistic(value=value, method="test", n=n, unit="x")


def agent(minutes: float | None = 1.5, **transcripts: int) -> AgentSection:
    time = number(minutes) if minutes is not None else None
    tiers = [
        Tier(tier=name, status="CLEAR", transcript_tokens=number(tokens), minutes_per_task=time)
        for name, tokens in transcripts.items()
    ]
    return AgentSection(verdict="READY", sentence="", tiers=tiers)


def inspector(**ceilings: Any) -> InspectorSection:
    made = InspectorSection()
    made.memory.ceilings = made.memory.ceilings.model_copy(update=ceilings)
    return made


def cliff(tokens: int) -> AuditSection:
    return AuditSection(verdict="cliff", sentence="s", maintained_tokens=tokens, cliff_between=(tokens, tokens + 1000))


def test_without_the_agent_report_the_least_limit_binds() -> None:
    verdict = joint(result(audit=cliff(6000), inspector=inspector(advertised_tokens=131072, spill_tokens=number(40_000))))
    assert verdict.sentence == (
        "Usable (agent work not measured) up to 6,000-token transcripts (Audit: accuracy holds), on this machine."
    )
    assert [(limit["value"], limit["source"]) for limit in verdict.limits] == [
        (6000, "Audit"),
        (40_000, "Inspector"),
        (131072, "/api/show"),
    ]


def test_an_untested_limit_is_a_lower_bound() -> None:
    made = result(audit=AuditSection(verdict="limit not reached", sentence="s", maintained_tokens=8000))
    assert "up to at least 8,000-token transcripts (Audit: tested no further)" in joint(made).sentence


def test_nothing_measured_claims_nothing() -> None:
    assert joint_verdict(result()) is None
    assert "no context limit was measured" in joint(result(inspector=inspector())).sentence
    assert "(Inspector: fits memory)" in joint(result(inspector=inspector(oom_tokens=number(9000)))).sentence
    alone = joint(result(agent=agent(None, easy=900)))
    assert "up to 900-token transcripts (Agent Report: the longest of 9 easy runs; no limit on context was measured)" in (
        alone.sentence
    )
    assert "at a pace that was not measured" in alone.sentence
    assert [limit["unit"] for limit in alone.limits] == ["tokens"]


def test_an_advertised_window_alone_is_no_limit_that_was_measured() -> None:
    made = result(agent=agent(easy=900))
    made.target.advertised_context_tokens = 500_000
    assert "500,000" not in joint(made).sentence
    assert {"what": "advertised", "value": 500_000, "unit": "tokens", "source": "/api/show"} in joint(made).limits
    made.audit = AuditSection(verdict="limit not reached", sentence="s", maintained_tokens=600_000)
    assert "up to 500,000-token transcripts (/api/show: advertised)" in joint(made).sentence


def test_all_three_give_one_sentence_with_every_source() -> None:
    made = result(audit=cliff(8000), inspector=inspector(spill_tokens=number(32768)), agent=agent(easy=900, hard=5000))
    verdict = joint(made)
    assert verdict.sentence == (
        "Usable as an agent for hard tasks, up to 8,000-token transcripts (Audit: accuracy holds), "
        "1.5 minutes per task (Agent Report: mean of 9 hard runs), on this machine."
    )
    assert {limit["source"].split(":")[0] for limit in verdict.limits} == {"Audit", "Inspector", "Agent Report"}
    made.audit = cliff(40_000)
    assert "up to 32,768-token transcripts (Inspector: fits the device)" in joint(made).sentence


def test_a_tier_beyond_the_limit_is_not_usable() -> None:
    made = result(audit=cliff(2000), agent=agent(easy=900, hard=5000))
    assert "for easy tasks" in joint(made).sentence
    assert "Hard: cleared, but with longer transcripts than that." in joint(made).sentence
    made.agent = agent(hard=5000)
    assert joint(made).sentence == (
        "Not usable as an agent here: what it clears needs longer transcripts than 2,000 tokens (Audit)."
    )


def test_no_cleared_tier_is_not_usable_and_doubt_is_not_failure() -> None:
    made = result(agent=AgentSection(verdict="NOT READY", sentence="", boundary="fails Easy"))
    assert joint(made).sentence == "Not usable as an agent here: it clears no tier (fails Easy)."
    made.agent = AgentSection(verdict="INSUFFICIENT DATA", sentence="No tier was tested: stopped.")
    assert joint(made).sentence == "Not shown to be usable as an agent here: no tier was tested: stopped."


def test_small_times_keep_their_digits() -> None:
    assert "0.0031 minutes per task" in joint(result(agent=agent(0.00312, easy=900))).sentence
