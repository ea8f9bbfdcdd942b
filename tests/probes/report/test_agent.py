"""What a reader of the Agent Report must find, in every form that a person reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from probes.agent.plan import plan_for
from probes.agent.report import report_agent
from probes.ask import Answer, Ask
from probes.report import html, markdown, terminal
from probes.report.agent import agent_blocks
from probes.report.blocks import Table
from probes.report.replays import spoken_run
from probes.report.terminal import printed
from probes.result import FAILURE_CLASSES, AgentSection, Result, Run, Statistic, Target
from probes.runner import replay
from probes.sim.agent_policies import answer_with

DOCUMENTS: dict[str, object] = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [{"name": "m:latest", "digest": "sha256:1", "size": 1}]},
    "/api/show": {"capabilities": ["completion", "tools"], "model_info": {}},
    "/api/ps": {"models": []},
}


def section_of(policy: str, parameters: dict[str, Any] | None = None, **flags: Any) -> AgentSection:
    chat = answer_with(policy, parameters)

    def answer(ask: Ask) -> Answer:
        return Answer(ask.key, status=200, document=DOCUMENTS[ask.path]) if ask.path in DOCUMENTS else chat(ask)

    return replay(report_agent(plan_for("m", "http://u", **flags)), answer)


def result_of(section: AgentSection) -> Result:
    run = Run(id="i", kind="agent", started_at="t", seed=1)
    return Result(run=run, target=Target(endpoint="e", name="m"), agent=section, rows=None)


@pytest.fixture(scope="module")
def section() -> AgentSection:
    found = section_of("post", tiers="easy,hard")
    found.tiers[0].minutes_per_task = Statistic(value=1.5, method="t", n=18, unit="minutes")  # in process nothing takes time
    return found


@pytest.fixture
def forms() -> Callable[[AgentSection], dict[str, str]]:
    def made(section: AgentSection) -> dict[str, str]:
        result = result_of(section)
        return {"md": markdown(result), "html": html(result), "terminal": printed(terminal(result), 160)}

    return made


def rows(section: AgentSection) -> dict[str, tuple[str, ...]]:
    table = next(block for block in agent_blocks(section) if isinstance(block, Table))
    return {row[0]: row[1:] for row in table.rows}


def test_beside_each_badge_stands_its_lower_limit_and_the_two_ks_are_two_rows(section: AgentSection) -> None:
    found = rows(section)
    assert found["Pass^k as seen"] == ("Pass^5: 18/18", "–", "Pass^16: failed, 0/8", "–")
    assert found["One run passes at least (95 %)"] == ("85%", "–", "0%", "–")
    assert found["streak_k: k fresh all pass"][0].startswith("k=5: 100% [")
    assert found["streak_k: k fresh all pass"][2] == "k=16: not with 8 runs"
    assert "pass_hat_k: k repeats pass" not in found  # every instance was run once: said in words, never filled in
    assert found["n_eff"] == ("18", "–", "8", "–")


def test_what_the_issue_names_is_there(section: AgentSection, forms: Callable[[AgentSection], dict[str, str]]) -> None:
    words = [
        *("Progress to the goal", "Steps", "Output tokens a run", "Minutes per task", "Chance floor", "Oracle"),
        *("Horizon, steps", "Longest transcript", "TrapTriggered: used a forbidden tool", "CollateralDamage: changed protected"),
        *("pass_hat_k is not measured", "qm-world/1", "guard cut", "False-stop rate", "detector of live traffic"),
        *("Under the post", "hard/0", "replay"),
    ]
    for form, text in forms(section).items():
        flat = " ".join(text.split())
        missing = [word for word in words if word not in flat]
        assert not missing, f"{form}: {missing}"


def test_all_fourteen_classes_are_spoken_of(section: AgentSection, forms: Callable[[AgentSection], dict[str, str]]) -> None:
    for text in forms(section).values():
        assert all(name in " ".join(text.split()) for name in FAILURE_CLASSES)


def test_evidence_names_run_and_steps(section: AgentSection) -> None:
    table = next(block for block in agent_blocks(section) if isinstance(block, Table) and block.head[0] == "Class")
    loop = next(row for row in table.rows if row[0] == "InfiniteLoop")
    run = next(run for run in section.runs if run["outcome"] == "InfiniteLoop")
    assert loop[-1].startswith(f"{spoken_run(str(run['run']))}, step {', '.join(map(str, run['evidence_steps']))}: ")
    assert loop[-2] == "InfiniteLoop"


def test_a_measured_false_stop_rate_is_printed(forms: Callable[[AgentSection], dict[str, str]]) -> None:
    """An agent that forgets looks like a loop and sometimes is none: the tenth that go on say how often."""
    forgetful = section_of("forgetful", {"forget": 0.5}, tiers="hard", seed=5, strict_k=True, k=60)
    stops = forgetful.tiers[2].false_stops
    assert stops is not None
    assert stops.n >= 1
    for text in forms(forgetful).values():
        assert f"of {stops.n} passed after all" in " ".join(text.split())


def test_both_paths_are_shown_and_never_mixed() -> None:
    both = section_of("oracle", tiers="easy", both=True)
    text = markdown(result_of(both))
    assert "native tool calls" in text
    assert "The same by the other way of calling tools: prompt-json" in text
    assert text.count("| Runs passed |") == 2


def test_what_is_to_blame_before_the_model_is_told_apart() -> None:
    text = markdown(result_of(section_of("foreign-dialect", tiers="easy")))
    assert "A template or a budget is to blame before the model is: ForeignDialect" in text


def test_runs_lost_to_infrastructure_are_counted_and_no_failure() -> None:
    lost = section_of("crasher", tiers="easy")
    text = markdown(result_of(lost))
    assert "INSUFFICIENT DATA" in text
    assert "| Infra | 8 |" in text


def test_the_page_walks_the_kept_runs(section: AgentSection) -> None:
    page = html(result_of(section))
    assert page.count('<section class="qm-replay">') == len(section.replays) >= 2
    assert "replays.html" not in page  # nothing was written beside it
    saved = result_of(section)
    saved.rows = "rows.jsonl"
    assert '<a href="replays.html">' in html(saved)


def test_names_of_runs() -> None:
    assert spoken_run("agent/native/hard/3/0") == "hard/3"
    assert spoken_run("agent/native/hard/3/2") == "hard/3/2"
    assert spoken_run("agent/prompt-json/easy/0/0") == "prompt-json/easy/0"
