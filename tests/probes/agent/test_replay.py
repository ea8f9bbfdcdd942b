from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from probes.agent.replay import replay, stopped_at, terminal
from probes.agent.taxonomy import Outcome
from probes.agent.trace import Played
from probes.sim.agent_policies import POLICIES

Scripted = Callable[..., tuple[Played, Outcome]]


def test_an_oracles_run_needs_no_comment(scripted: Scripted) -> None:
    played, outcome = scripted("oracle", "hard", 0)
    shown = replay(played, outcome)
    assert all(step["as_oracle"] for step in shown["steps"][:-1])
    assert [step for step in shown["steps"] if step["oracle"] is not None] == []
    assert (shown["outcome"], shown["progress"]) == ("PASS", 1.0)
    assert "progress stopped" not in terminal(shown)


def test_a_stuck_run_shows_where_the_oracle_would_have_gone(scripted: Scripted) -> None:
    played, outcome = scripted("looper", "hard", 0)
    shown = replay(played, outcome)
    refused = next(step for step in shown["steps"] if step["answer"].startswith("refused"))
    after = next(step for step in shown["steps"] if step["step"] == refused["step"] + 1)
    assert after["call"] == refused["call"]
    assert after["oracle"]["call"] in ("request_approval", "acquire_lock", "run_migration", "set_flag", "take_snapshot")
    assert any(value in refused["answer"] for value in after["oracle"]["arguments"].values())
    assert [step["step"] for step in shown["steps"] if step["evidence"]] == list(outcome.steps)
    text = terminal(shown)
    assert "-- progress stopped here" in text
    assert "the oracle would: " in text
    assert text.count(">>") == 3


def test_long_repetitions_are_folded(scripted: Scripted) -> None:
    played, outcome = scripted("looper", "hard", 0, go_on=True)
    text = terminal(replay(played, outcome))
    assert f"… the same up to step {played.instance.horizon}" in text
    assert len(text.splitlines()) < 60


def test_progress_stops_at_its_best_step(scripted: Scripted) -> None:
    played, _ = scripted("looper", "hard", 0)
    at = stopped_at(played)
    assert at is not None
    best = min(step.distance for step in played.steps)
    assert played.steps[at - 1].distance == best
    assert all(step.distance > best for step in played.steps[: at - 1])
    nothing, _ = scripted("mumbler", "hard", 0)
    assert stopped_at(nothing) is None


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_run_can_be_walked(policy: str, scripted: Scripted) -> None:
    played, outcome = scripted(policy, "extreme", 3)
    shown = replay(played, outcome)
    assert json.loads(json.dumps(shown)) == shown
    assert len(json.dumps(shown)) < 400_000
    assert terminal(shown, 100)
    assert max(len(line) for line in terminal(shown, 100).splitlines() if not line.startswith("  ")) <= 200
