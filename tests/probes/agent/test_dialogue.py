from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from probes.agent.dialogue import Conduct, window_bound
from probes.agent.instance import Instance
from probes.agent.run import play_run
from probes.agent.tiers import TIERS
from probes.agent.trace import Played
from probes.ask import Answer, Ask
from probes.runner import replay
from probes.sim.agent_policies import answer_with

First = Callable[[str, int], list[Instance]]


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
            "num_batch": 512,
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
