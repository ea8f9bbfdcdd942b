"""Runs of the origin's sampling read as every other replay, and come out of the recorded answers as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from probes.agent.compat import RUNS, TURNS, CompatTally, tasks
from probes.agent.compat_replay import compat_kept, compat_key, compat_replay, walk_compat
from probes.agent.replay import terminal
from probes.ask import Answer, Ask
from probes.report.replays import fragment
from probes.result import CompatSection
from probes.sim.agent_policies import answer_with
from qm_proxy.errors import SettingsError

Compat = Callable[..., CompatTally]
LABELS = {
    "looper": "InfiniteLoop",
    "decoy-lover": "InfiniteLoop",
    "mumbler": "Hallucinated",
    "empty": "EmptyOutput",
    "foreign-dialect": "ForeignDialect",
    "broken-json": "MalformedJson",
    "trap-lover": "ForbiddenCall",
    "schema-breaker": "MalformedSchema",
    "inventor": "MalformedSchema",
    "crasher": "SKIPPED",
}


def _section(tally: CompatTally) -> CompatSection:
    section = CompatSection()
    compat_kept(section, tally)
    return section


@pytest.mark.parametrize("policy", ["oracle", *LABELS])
def test_a_walk_says_what_the_run_said(policy: str, compat: Compat) -> None:
    tally = compat(policy)
    for run in tally.runs:
        shown = compat_replay(run, "native")
        assert shown["outcome"] == LABELS.get(policy, "PASS") or run.tier == "easy"
        assert shown["turns"][-1]["turn"] == run.turns
        assert shown["progress"] == 1.0 if run.passed else shown["progress"] < 1.0
        assert set(shown["evidence_steps"]) <= {step["step"] for step in shown["steps"]}
        assert bool(shown["why"]) != run.passed
        assert shown["sampling"] in " ".join(terminal(shown).split())
        assert shown["run"] in fragment(shown)
        json.dumps(shown)


def test_the_oracle_goes_the_tasks_own_way(compat: Compat) -> None:
    """Whoever plays as the oracle differs from it at no step, and needs what is printed as the oracle's calls."""
    for run in compat("oracle").runs:
        shown = compat_replay(run, "native")
        assert all(step["as_oracle"] for step in shown["steps"])
        assert [step["calls_left"] for step in shown["steps"]][-1] == 0
        assert len(shown["steps"]) == shown["oracle_steps"] == run.turns
    single = compat_replay(compat("mumbler", "easy").runs[-1], "native")
    assert single["oracle_steps"] == 1
    assert single["steps"][0]["oracle"]["call"] == "run_tests"


def test_where_progress_stopped(compat: Compat) -> None:
    run = compat("looper", "hard").runs[0]
    shown = compat_replay(run, "native")
    assert "identical" in shown["why"]
    assert [step["turn"] for step in shown["steps"] if step["evidence"]] == [run.turns - 2, run.turns - 1, run.turns]
    stopped = shown["progress_stopped_at"]
    assert 0 < stopped < run.turns
    assert "progress stopped here" in terminal(shown)
    spent = compat_replay(compat("two-cycle", "hard").runs[0], "native")
    assert spent["horizon"] == TURNS["hard"] == spent["turns"][-1]["turn"]
    assert "its cap" in spent["why"]


def test_every_run_is_walked_from_its_answers(compat: Compat) -> None:
    model = answer_with("post")
    section = _section(compat("post"))
    assert len(section.runs) == RUNS
    by_run = {shown["run"]: shown for shown in section.replays}
    for line in section.runs:
        shown = walk_compat(section, "m", str(line["run"]), model)
        assert (shown["outcome"], shown["why"]) == (line["outcome"], line["why"])
        assert shown["progress_stopped_at"] == line["stopped_at"]
        assert shown["progress"] == line["progress"]
        if line["run"] in by_run:
            assert shown == by_run.pop(str(line["run"]))
    assert not by_run


def test_the_first_of_each_outcome_is_kept_and_copies_are_named(compat: Compat) -> None:
    section = _section(compat("looper", "hard"))
    assert [shown["run"] for shown in section.replays] == ["compat/hard-0/0"]
    same = [run["same_as"] for run in section.runs]
    assert same.count(None) == len(tasks("hard"))
    assert same[1] == "compat/hard-0/0"
    assert CompatSection.model_validate_json(section.model_dump_json()) == section


def test_a_run_is_named_as_a_reader_names_it(compat: Compat) -> None:
    section = _section(compat("oracle", "easy"))
    assert compat_key(section, "compat/easy-1/4") == compat_key(section, "easy-1/4") == "compat/easy-1/4"
    for wrong in ("easy-1/5", "easy/1", "compat/hard-0/0", ""):
        assert compat_key(section, wrong) is None


def test_without_answers_only_the_kept_can_be_walked(compat: Compat) -> None:
    section = _section(compat("oracle", "easy"))
    assert walk_compat(section, "m", "compat/easy-0/0", None)["outcome"] == "PASS"
    with pytest.raises(SettingsError, match="not recorded"):
        walk_compat(section, "m", "compat/easy-0/1", None)
    section.conduct["generator_version"] = "qm-world/0"
    with pytest.raises(SettingsError, match="qm-world/0"):
        walk_compat(section, "m", "compat/easy-0/1", answer_with("oracle"))


def test_an_answer_that_is_missing_is_said(compat: Compat) -> None:
    section = _section(compat("oracle", "easy"))
    model = answer_with("oracle")

    def short(ask: Ask) -> Answer | None:
        return model(ask) if ask.key.endswith("/1") else None

    with pytest.raises(SettingsError, match="compat/easy-0/0/2"):
        walk_compat(section, "m", "compat/easy-0/0", short)


def test_nothing_is_kept_of_nothing() -> None:
    section: Any = _section(CompatTally())
    assert (section.runs, section.conduct, section.replays) == ([], {}, [])
