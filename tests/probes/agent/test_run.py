from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from probes.agent.instance import Instance
from probes.agent.run import Conduct, Played, play_run, window_bound
from probes.agent.taxonomy import judge
from probes.agent.tiers import TIERS
from probes.ask import Answer, Ask
from probes.runner import replay
from probes.sim.agent_policies import POLICIES, answer_with

First = Callable[[str, int], list[Instance]]
Play = Callable[..., Played]


def _asked(instance: Instance, policy: str, conduct: Conduct) -> tuple[Played, list[Ask]]:
    asks: list[Ask] = []
    model = answer_with(policy)

    def answer(ask: Ask) -> Answer:
        asks.append(ask)
        return model(ask)

    return replay(play_run(instance, conduct, "k"), answer), asks


def test_every_request_says_everything(solvable: First) -> None:
    played, asks = _asked(solvable("hard", 1)[0], "oracle", Conduct("m"))
    assert len(asks) == len(played.steps)
    assert len({ask.key for ask in asks}) == len(asks)
    for ask in asks:
        body: dict[str, Any] = ask.body or {}
        assert ask.path == "/api/chat"
        assert (body["truncate"], body["shift"], body["stream"]) == (False, False, True)
        assert body["options"] == {
            "num_ctx": window_bound(TIERS[2], Conduct("m")),
            "num_predict": 512,
            "temperature": 0.0,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "seed": played.instance.seed,
        }
        assert "think" not in body


def test_tool_results_go_back_in_their_role_and_thinking_does_not(solvable: First) -> None:
    _, asks = _asked(solvable("easy", 1)[0], "thinker", Conduct("m", think=True))
    messages = (asks[-1].body or {})["messages"]
    assert isinstance(messages, list)
    assert [m["role"] for m in messages] == ["system", "user", *["assistant", "tool"] * 3]
    assert all(
        m["tool_calls"][0]["function"]["name"] == n["tool_name"] for m, n in zip(messages[2::2], messages[3::2], strict=True)
    )
    assert "comes next" not in json.dumps(messages)
    assert (asks[0].body or {})["think"] is True
    assert (asks[0].body or {})["options"]["num_predict"] == 512 + 4096  # type: ignore[index]


def test_a_transcript_only_grows(solvable: First) -> None:
    """The prefix stays byte for byte: the server's cache, and the transcript the model saw, are kept."""
    _, asks = _asked(solvable("medium", 1)[0], "oracle", Conduct("m"))
    before: list[Any] = []
    for ask in asks:
        messages = (ask.body or {})["messages"]
        assert isinstance(messages, list)
        assert messages[: len(before)] == before
        before = messages


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


def test_the_window_bound_holds_for_every_scripted_talk(solvable: First) -> None:
    """Counted at four characters a token, no transcript comes near it; one number for a tier, so nothing reloads."""
    for tier in TIERS:
        bound = window_bound(tier, Conduct("m"))
        for policy in ("oracle", "decoy-lover", "random-legal", "unaware"):
            for instance in solvable(tier.name, 3):
                _, asks = _asked(instance, policy, Conduct("m"))
                assert max(len(json.dumps(ask.body)) for ask in asks) / 4 < bound
    assert window_bound(TIERS[0], Conduct("m", think=True)) > window_bound(TIERS[0], Conduct("m"))
    assert window_bound(TIERS[3], Conduct("m", window_most=8192)) == 8192


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
