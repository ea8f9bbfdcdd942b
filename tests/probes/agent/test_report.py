from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from probes.agent.plan import plan_for
from probes.agent.report import RERUNS, Seen, report_agent
from probes.ask import Answer, Ask, Note, Stopped
from probes.hardware import describe
from probes.result import AgentSection
from probes.runner import replay
from qm_proxy.errors import SettingsError

Server = Callable[..., Callable[[Ask], Answer]]


def _report(server: Callable[[Ask], Answer], seen: Seen | None = None, **flags: Any) -> AgentSection:
    return replay(report_agent(plan_for("m", "http://u", **flags), seen), server)


def test_an_oracle_is_ready_for_extreme(server: Server) -> None:
    seen = Seen()
    section = _report(server("oracle"), seen, seed=1)
    assert (section.verdict, section.ready_for, section.sentence) == ("READY", "extreme", "Clears through Extreme.")
    assert [tier.status for tier in section.tiers] == ["CLEAR"] * 4
    assert all(limit["holds"] for limit in section.safety)
    assert seen.by_path["native"][-1].topped_up  # a gate's dozen runs cannot show that traps are rare
    for tier in section.tiers:
        assert tier.n == tier.passed
        assert tier.steps is not None
        assert tier.oracle_steps is not None
        assert tier.steps.value == tier.oracle_steps.value


def test_doing_nothing_and_luck_are_not_ready(server: Server) -> None:
    for policy in ("do-nothing", "random-legal"):
        section = _report(server(policy), all_tiers=True)
        assert section.verdict == "NOT READY"
        for tier in section.tiers:
            assert tier.chance_floor is not None
            assert tier.passed <= tier.n * 0.2
            if policy == "do-nothing":
                assert tier.passed == 0


def test_the_ladder_stops_at_the_first_failure_unless_told(server: Server) -> None:
    section = _report(server("post"))
    assert [tier.status for tier in section.tiers] == ["CLEAR", "FAIL", "NOT TESTED", "NOT TESTED"]
    assert section.tiers[2].unmeasured["rate"] == "a tier below failed"
    assert section.boundary == "clears through Easy; fails Medium; Hard, Extreme not tested"
    section = _report(server("post"), all_tiers=True)
    assert [tier.status for tier in section.tiers] == ["CLEAR", "FAIL", "FAIL", "FAIL"]


def test_the_post_with_its_hardware(server: Server) -> None:
    seen = Seen()
    section = _report(server("post"), seen, tiers="easy,hard", compat="quantamind", host=describe("apple:64GiB"))
    assert section.verdict == "CONDITIONAL"
    assert section.boundary == "clears through Easy; fails Hard; Medium, Extreme not tested"
    assert (section.hardware_class, section.recommended_tier) == ("Workstation", "hard")
    assert seen.compat is not None
    assert len(seen.compat.runs) == 89
    assert section.advice[0].startswith("InfiniteLoop")


def test_one_seed_gives_one_report(server: Server) -> None:
    first, second = (_report(server("wasteful", waste=0.25), seed=11, tiers="hard").model_dump() for _ in range(2))
    assert first == second
    other = _report(server("wasteful", waste=0.25), seed=12, tiers="hard").model_dump()
    assert other != first


def test_dropped_connections_leave_the_rate_alone(server: Server) -> None:
    """A good agent on a bad line: every lost run is played again on its own instance; the same runs count as without it."""
    clean, calls = server("oracle"), [0]

    def shaky(ask: Ask) -> Answer:
        calls[0] += 1
        if ask.path == "/api/chat" and calls[0] % 40 == 0:
            return Answer(ask.key, status=200, ending="upstream_truncated", error="reset")
        return clean(ask)

    seen = Seen()
    section, whole = _report(shaky, seen, tiers="easy,hard"), _report(clean, tiers="easy,hard")
    assert sum(tally.reruns for tally in seen.by_path["native"]) > 0
    assert [(t.n, t.passed, t.status) for t in section.tiers] == [(t.n, t.passed, t.status) for t in whole.tiers]


def test_a_dead_line_voids_the_tier(server: Server) -> None:
    seen = Seen()
    section = _report(server("crasher"), seen, tiers="easy")
    assert section.verdict == "INSUFFICIENT DATA"
    tally = seen.by_path["native"][0]
    assert len(tally.excluded) == 8
    assert tally.reruns == 8 * RERUNS
    assert "8 runs were lost to the server or the line" in section.advice[0]


def test_strict_k_runs_k_times(server: Server) -> None:
    section = _report(server("oracle"), tiers="easy,hard", strict_k=True)
    assert [(tier.n, tier.status, tier.badge) for tier in section.tiers if tier.n] == [
        (5, "CLEAR", "Pass^5: 5/5 runs passed"),
        (16, "CLEAR", "Pass^16: 16/16 runs passed"),
    ]
    assert section.tiers[0].per_run_at_least == pytest.approx(0.549, abs=1e-3)
    assert section.verdict == "CONDITIONAL"  # twenty-one runs show no safety limit
    assert _report(server("oracle"), tiers="hard", strict_k=True, k=3).tiers[2].n == 3


def test_the_path_follows_what_the_model_can(server: Server) -> None:
    assert _report(server("oracle"), tiers="easy").path == "native"
    assert _report(server("oracle", capabilities=("completion",)), tiers="easy").path == "prompt-json"
    both = _report(server("oracle"), tiers="easy", both=True)
    assert (both.path, both.other_path and both.other_path.path) == ("native", "prompt-json")
    assert both.other_path is not None
    assert both.other_path.tiers[0].n == both.tiers[0].n


def test_a_thinker_is_asked_to_think_and_its_budget_is_told_apart(server: Server) -> None:
    asked: list[Any] = []
    model = server("thinker", capabilities=("completion", "tools", "thinking"))

    def answer(ask: Ask) -> Answer:
        asked.append((ask.body or {}).get("think"))
        return model(ask)

    assert _report(answer, tiers="easy").verdict == "READY"
    assert set(asked[4:]) == {True}
    exhausted = _report(server("exhausted-thinker", capabilities=("completion", "tools", "thinking")), tiers="easy")
    assert exhausted.verdict == "INSUFFICIENT DATA"
    assert any("thinking" in line for line in exhausted.advice)
    assert exhausted.tiers[0].apart == {"ThinkingExhausted": 8}


def test_stopped_early_it_says_what_it_has(server: Server) -> None:
    probe = report_agent(plan_for("m", "http://u", tiers="easy,hard"))
    model = server("oracle")
    step = next(probe)
    notes = 0
    section = None
    try:
        while True:
            if isinstance(step, Note):
                notes += 1
                if notes == 5:
                    step = probe.throw(Stopped("interrupted", "Ctrl-C"))
                    continue
            step = probe.send(model(step) if isinstance(step, Ask) else Answer("note"))
    except StopIteration as concluded:
        section = concluded.value
    assert section is not None
    assert (section.tiers[0].n, section.tiers[0].status) == (5, "UNDECIDED")
    assert section.verdict == "INSUFFICIENT DATA"
    assert section.unmeasured["rest"] == "stopped early (interrupted): Ctrl-C"


def test_nothing_is_published_that_was_not_measured(server: Server) -> None:
    section = _report(server("post"), tiers="easy")
    document = json.loads(section.model_dump_json(exclude_none=True))
    assert "hardware_class" not in document
    assert "unknown" in document["unmeasured"]["hardware_class"]
    assert "rate" not in document["tiers"][3]
    assert {shown["outcome"] for shown in document["replays"]} == {"PASS"}


def test_an_unknown_model_is_refused_in_words(server: Server) -> None:
    model = server("oracle")

    def answer(ask: Ask) -> Answer:
        if ask.path == "/api/show":
            return Answer(ask.key, status=404, ending="upstream_error", error="model not found")
        return model(ask)

    with pytest.raises(SettingsError, match="no model"):
        _report(answer)


def test_any_run_can_be_walked_by_its_key(server: Server) -> None:
    seen = Seen()
    section = _report(server("post"), seen, tiers="hard")
    assert len(seen.runs()) == section.tiers[2].n
    for run in seen.runs():
        walked = seen.walk(run.played.key)
        assert walked is not None
        assert walked["run"] == run.played.key
    assert seen.walk("agent/native/hard/99") is None


def test_how_runs_were_made_and_the_posts_labels_are_said(server: Server) -> None:
    section = _report(server("post"), tiers="easy,hard")
    assert section.conduct["thinking"] is None
    assert set(section.conduct["window_tokens"]) == {"easy", "hard"}
    failed = section.tiers[2].failures
    assert section.origin_labels["InfiniteLoop"] == failed["InfiniteLoop"]


def test_compat_uses_the_path_the_model_can(server: Server) -> None:
    seen = Seen()
    _report(server("oracle", capabilities=("completion",)), seen, tiers="easy", compat="quantamind")
    assert seen.compat is not None
    assert all(run.passed for run in seen.compat.runs)
