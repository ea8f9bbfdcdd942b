from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from probes.agent.dialogue import Conduct
from probes.agent.instance import Instance, Need
from probes.agent.run import play_run
from probes.agent.taxonomy import judge
from probes.agent.tools import NEED_TOOLS
from probes.agent.trace import Played
from probes.ask import Answer, Ask
from probes.runner import replay
from probes.sim.agent_policies import POLICIES, answer_with
from qm_proxy.events import Event, Finished, Nanoseconds, ToolCall

First = Callable[[str, int], list[Instance]]
Play = Callable[..., Played]


def _asked(instance: Instance, policy: str, conduct: Conduct) -> tuple[Played, list[Ask]]:
    asks: list[Ask] = []
    model = answer_with(policy)

    def answer(ask: Ask) -> Answer:
        asks.append(ask)
        return model(ask)

    return replay(play_run(instance, conduct, "k"), answer), asks


def test_the_prompt_path_offers_tools_in_words_and_scores_alike(solvable: First, play: Play) -> None:
    for instance in solvable("hard", 5):
        native, prompt = play(instance, "oracle"), play(instance, "oracle", path="prompt-json")
        assert [(s.name, s.arguments, s.answer) for s in native.steps] == [(s.name, s.arguments, s.answer) for s in prompt.steps]
        assert judge(prompt).passed
    _, asks = _asked(solvable("easy", 1)[0], "oracle", Conduct("m", path="prompt-json"))
    assert "tools" not in (asks[0].body or {})
    assert "tool" not in {m["role"] for m in (asks[-1].body or {})["messages"]}  # type: ignore[attr-defined]


def test_parallel_calls_cost_a_step_each(solvable: First, play: Play) -> None:
    for tier in ("easy", "hard"):
        played = play(solvable(tier, 1)[0], "flood", calls=400)
        assert len(played.turns) == 1
        assert len(played.steps) == played.instance.horizon
        assert played.ending == "horizon"


def test_a_request_that_would_not_fit_is_not_sent(solvable: First) -> None:
    played, asks = _asked(solvable("easy", 1)[0], "megabyte", Conduct("m"))
    assert len(asks) == 1
    assert judge(played).label == "ContextOverflow"
    _, asks = _asked(solvable("hard", 1)[0], "oracle", Conduct("m", window_tokens=2048))
    assert all((ask.body or {})["options"]["num_ctx"] == 2048 for ask in asks)  # type: ignore[index]


def test_one_turn_without_a_call_is_forgiven_and_reminded(solvable: First) -> None:
    model, turn = answer_with("oracle"), [0]
    seen: list[list[dict[str, Any]]] = []

    def answer(ask: Ask) -> Answer:
        turn[0] += 1
        seen.append((ask.body or {})["messages"])  # type: ignore[arg-type]
        return answer_with("mumbler")(ask) if turn[0] == 2 else model(ask)

    played = replay(play_run(solvable("easy", 1)[0], Conduct("m"), "k"), answer)
    assert judge(played).passed
    assert [step.kind for step in played.steps] == ["ok", "no_call", "ok", "ok", "done"]
    assert seen[2][-1]["role"] == "user"
    assert "call" in seen[2][-1]["content"].lower()


def test_two_unreadable_turns_are_forgiven_and_a_third_is_not(solvable: First) -> None:
    for bad, passes in ((2, True), (3, False)):
        model, turn = answer_with("oracle"), [0]

        def answer(ask: Ask, model: Callable[[Ask], Answer] = model, turn: list[int] = turn, bad: int = bad) -> Answer:
            turn[0] += 1
            return answer_with("broken-json")(ask) if turn[0] <= bad else model(ask)

        outcome = judge(replay(play_run(solvable("easy", 1)[0], Conduct("m"), "k"), answer))
        assert outcome.passed is passes
        assert passes or outcome.label == "Malformed"


@pytest.mark.parametrize("path", ["native", "prompt-json"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_policy_raises_on_either_path(policy: str, path: str, solvable: First, play: Play) -> None:
    played = play(solvable("medium", 1)[0], policy, path=path)
    assert len(played.steps) <= played.instance.horizon
    assert 0 <= played.progress <= 1


def test_running_twice_gives_the_same(solvable: First, play: Play) -> None:
    for policy in ("random-legal", "wasteful", "post"):
        one, two = (play(solvable("hard", 2)[1], policy) for _ in range(2))
        assert replace(one, instance=two.instance) == two


def test_steps_say_what_they_changed_and_taught(solvable: First, play: Play) -> None:
    played = play(solvable("hard", 1)[0], "oracle")
    assert played.progress == 1
    assert all(step.changed or step.learned or step.kind in ("ok", "done") for step in played.steps)
    distances = [played.start_distance, *(step.distance for step in played.steps)]
    assert distances[-1] == 0
    assert all(later <= earlier for earlier, later in pairwise(distances))


def test_silence_and_noise_end_a_run_when_they_should(solvable: First, play: Play) -> None:
    instance = solvable("hard", 1)[0]
    assert [step.kind for step in play(instance, "mumbler").steps] == ["no_call"] * 2
    assert [step.kind for step in play(instance, "broken-json").steps] == ["malformed"] * 3
    assert [step.kind for step in play(instance, "bad-arguments").steps] == ["malformed"] * 3


def test_a_needless_reference_is_nothing_made_up(solvable: First) -> None:
    """A value that nobody asked for and that does no harm is no fabrication; the same value where one was asked for is."""
    pairs = ((i, n) for i in solvable("hard", 30) for n in i.needs.values() if n.kind != "flag" and n.behind is None)
    free: dict[str, tuple[Instance, Need]] = {}
    wanting: dict[str, tuple[Instance, Need]] = {}
    for instance, need in pairs:
        (free if need.reference is None else wanting)[need.id] = (instance, need)
    kinds = []
    for instance, need in (next(iter(free.values())), next(iter(wanting.values()))):
        tool, argument = NEED_TOOLS[need.kind]
        run = play_run(replace(instance, transient={}), Conduct("m"), "k")
        next(run)
        call = ToolCall(Nanoseconds(0), 0, "", tool, json.dumps({argument: need.id, "reference": "sha-00000000"}))
        ends: list[Event] = [call, Finished(Nanoseconds(0), "stop")]
        asked = run.send(Answer("k", status=200, events=ends))
        assert isinstance(asked, Ask)
        try:
            while True:
                run.send(Answer("k", status=200, events=[Finished(Nanoseconds(0), "stop")]))
        except StopIteration as over:
            kinds.append(over.value.steps[0].kind)
    assert kinds == ["ok", "fabricated"]
