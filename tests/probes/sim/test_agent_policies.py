from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from probes.agent.dialogue import Conduct, request_body
from probes.agent.generator import generate
from probes.agent.run import play_run
from probes.agent.tiers import TIERS
from probes.ask import Answer, Ask
from probes.runner import replay
from probes.sim.agent_policies import EXPECTED, POLICIES, answer_with, speak


def _bodies(policy: str, path: str = "native") -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    model = answer_with(policy)

    def answer(ask: Ask) -> Answer:
        seen.append(json.loads(json.dumps(ask.body)))
        return model(ask)

    replay(play_run(generate(TIERS[2], 3), Conduct("m", path=path), "k"), answer)  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_policy_is_a_function_of_the_request(policy: str) -> None:
    """Asked in any order and again, each request gets the answer it got before."""
    bodies = _bodies(policy)
    said = [speak(policy, body) for body in bodies]
    order = list(range(len(bodies)))
    Random(1).shuffle(order)
    assert all(speak(policy, bodies[index]) == said[index] for index in order)


def test_the_prompt_path_says_calls_as_json() -> None:
    body = _bodies("oracle", "prompt-json")[0]
    said = speak("oracle", body)
    assert said.calls == []
    assert json.loads(said.text)["name"] == "read_file"


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(LookupError):
        speak("oracle", {"messages": [{"role": "user", "content": "hello"}]})
    with pytest.raises(LookupError):
        speak("nobody", request_body(generate(TIERS[0], 0), Conduct("m")))


def test_parameters_are_the_policys_truth() -> None:
    body = _bodies("oracle")[3]
    assert speak("wasteful", body, {"waste": 0.0}) == speak("oracle", body)
    assert speak("wasteful", body, {"waste": 1.0}) != speak("oracle", body)
    assert speak("early-done", body, {"early": 1.0}).calls[0][0] == "done"
    assert speak("dropper", body, {"drop": 1.0}).drop
    assert not speak("dropper", body, {"drop": 0.0}).drop


def test_chance_comes_from_the_seed() -> None:
    bodies = _bodies("decoy-lover")
    tools = [[speak("decoy-lover", body, {"seed": seed}).calls for body in bodies] for seed in (1, 1, 2)]
    assert tools[0] == tools[1] != tools[2]


def test_every_expectation_has_its_policy() -> None:
    assert set(EXPECTED) <= set(POLICIES)
