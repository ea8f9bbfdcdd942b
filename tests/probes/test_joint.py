"""The sentence names the least limit with its source, and never more than was measured."""

from __future__ import annotations

from probes.joint import joint_verdict
from probes.result import AuditSection, InspectorSection, Result, Run, Statistic, Target


def result() -> Result:
    return Result(run=Run(id="i", kind="report", started_at="t", seed=1), target=Target(endpoint="e", name="m"))


def test_the_least_limit_binds() -> None:
    made = result()
    made.inspector = InspectorSection()
    made.inspector.memory.ceilings.advertised_tokens = 131072
    made.inspector.memory.ceilings.spill_tokens = Statistic(value=40_000, method="m", n=2, unit="tokens")
    made.audit = AuditSection(verdict="cliff", sentence="s", maintained_tokens=6000, cliff_between=(6000, 7000))
    verdict = joint_verdict(made)
    assert "up to 6,000-token transcripts (context kept, audit)" in verdict.sentence
    assert {limit["source"] for limit in verdict.limits} == {"audit", "inspector", "/api/show"}
    assert "agent work not measured" in verdict.sentence


def test_an_untested_limit_is_a_lower_bound() -> None:
    made = result()
    made.audit = AuditSection(verdict="limit not reached", sentence="s", maintained_tokens=8000)
    assert "at least 8,000-token transcripts (tested no further)" in joint_verdict(made).sentence


def test_nothing_measured_claims_nothing() -> None:
    made = result()
    made.inspector = InspectorSection()
    assert "no context limit was measured" in joint_verdict(made).sentence
    made.inspector.memory.ceilings.oom_tokens = Statistic(value=9000, method="m", n=2, unit="tokens")
    assert "fits memory" in joint_verdict(made).sentence
