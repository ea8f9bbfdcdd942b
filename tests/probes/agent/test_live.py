from __future__ import annotations

from collections.abc import Callable

from probes.agent.instance import Instance
from probes.agent.live import live_alarm
from probes.agent.scoring import Run
from probes.agent.taxonomy import judge
from probes.agent.trace import Played
from probes.agent.verdict import live_detector

First = Callable[[str, int], list[Instance]]
Play = Callable[..., Played]


def test_the_live_rule_finds_what_is_proven(solvable: First, play: Play) -> None:
    """Loops of period 1 to 3, told within two steps of the proof, given as many steps as it needs copies."""
    for policy in ("looper", "two-cycle", "three-cycle"):
        for instance in solvable("hard", 6):
            played = play(instance, policy, go_on=True)
            alarm = live_alarm(played)
            assert played.loop is not None
            assert alarm is not None, policy
            assert alarm.form == "cycle"
            assert abs(alarm.step - played.loop.steps[-1]) <= 2


def test_it_is_silent_on_runs_that_pass(solvable: First, play: Play) -> None:
    for policy in ("oracle", "poller", "wasteful", "forgetful"):
        for instance in solvable("hard", 6):
            played = play(instance, policy)
            if judge(played).passed:
                assert live_alarm(played) is None, (policy, instance.name)


def test_both_answers_are_counted(solvable: First, play: Play) -> None:
    runs = []
    for index, policy in enumerate(("oracle", "looper", "looper", "mumbler")):
        played = play(solvable("hard", 4)[index], policy, go_on=True)
        runs.append(Run(index, played, judge(played), live_alarm(played)))
    assert live_detector(runs) == {"proven_loops": 2, "found": 2, "thirds": 0, "passed_runs": 1, "false_alarms": 0}


def test_the_prompt_path_is_seen_too(solvable: First, play: Play) -> None:
    """There a call is text and its answer a user's line: repeated words, told as such or not at all, never an error."""
    played = play(solvable("hard", 1)[0], "looper", path="prompt-json", go_on=True)
    alarm = live_alarm(played)
    assert alarm is None or alarm.step <= played.instance.horizon


def test_where_the_question_is_the_same_so_is_the_answer(play: Callable[..., Played], solvable: First) -> None:
    """Loops of an agent that forgets: the live rule, which sees no state, names each that reached a fourth copy of a call that
    succeeds. Those that broke off at the third it leaves alone, and says how many they were."""
    runs = []
    for index, instance in enumerate(solvable("hard", 60)):
        played = play(instance, "forgetful", go_on=True, forget=0.4)
        runs.append(Run(index, played, judge(played), live_alarm(played)))
    counts = live_detector(runs)
    print(counts)
    assert counts["proven_loops"] >= 20
    assert counts["thirds"] >= 5
    assert counts["found"] >= 5
    assert counts["found"] + counts["thirds"] == counts["proven_loops"]
    assert counts["false_alarms"] == 0
