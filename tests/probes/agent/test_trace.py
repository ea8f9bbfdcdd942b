from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from probes.agent.taxonomy import Outcome
from probes.agent.trace import Played

Scripted = Callable[..., tuple[Played, Outcome]]


def test_progress_is_the_best_share_of_the_way(scripted: Scripted) -> None:
    assert scripted("oracle", "hard", 0)[0].progress == 1
    assert scripted("mumbler", "hard", 0)[0].progress == 0
    stuck, _ = scripted("looper", "hard", 0)
    best = min(step.distance for step in stuck.steps)
    assert stuck.progress == (stuck.start_distance - best) / stuck.start_distance
    assert 0 < stuck.progress < 1


def test_a_run_that_went_on_is_judged_up_to_its_loop(scripted: Scripted) -> None:
    stopped, _ = scripted("looper", "hard", 0)
    went_on, outcome = scripted("looper", "hard", 0, go_on=True)
    assert len(went_on.steps) == went_on.instance.horizon > len(stopped.steps)
    assert went_on.judged == stopped.steps
    assert went_on.output_tokens == stopped.output_tokens
    assert outcome.label == "InfiniteLoop"


def test_a_step_is_wasted_when_it_changed_and_taught_nothing(scripted: Scripted) -> None:
    assert not any(step.wasted for step in scripted("oracle", "hard", 0)[0].steps[:-1] if step.kind != "ok")
    assert all(step.wasted for step in scripted("decoy-lover", "hard", 0)[0].steps)
    retried, _ = scripted("oracle", "hard", 0)
    assert [step.wasted for step in retried.steps if step.kind == "fault"] == [False]


def test_sizes_are_unknown_when_a_turn_is(scripted: Scripted) -> None:
    played, _ = scripted("oracle", "easy", 0)
    assert played.transcript_tokens is not None
    turns = [replace(turn, input_tokens=None, output_tokens=None) for turn in played.turns]
    unknown = replace(played, turns=turns)
    assert unknown.output_tokens is None
    assert unknown.transcript_tokens is None
