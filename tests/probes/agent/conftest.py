"""Play a scripted policy in process: no server, no time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from probes.agent.compat import CompatTally, compat_runs
from probes.agent.dialogue import Conduct
from probes.agent.generator import generate
from probes.agent.instance import Instance
from probes.agent.run import play_run
from probes.agent.taxonomy import Outcome, judge
from probes.agent.tiers import Tier, tier_named
from probes.agent.trace import Played
from probes.ask import Answer, Ask
from probes.runner import replay
from probes.sim.agent_policies import answer_with

Play = Callable[..., Played]


@pytest.fixture
def play() -> Play:
    def played(instance: Instance, policy: str, *, go_on: bool = False, **changes: Any) -> Played:
        conduct = replace(Conduct("m"), **{k: v for k, v in changes.items() if k in Conduct.__slots__})
        parameters = {k: v for k, v in changes.items() if k not in Conduct.__slots__}
        return replay(play_run(instance, conduct, f"t/{instance.seed}", go_on=go_on), answer_with(policy, parameters))

    return played


@pytest.fixture
def scripted(play: Play) -> Callable[..., tuple[Played, Outcome]]:
    """Policy, tier name, seed → the run and its outcome."""

    def run(policy: str, tier: str | Tier, seed: int, **changes: Any) -> tuple[Played, Outcome]:
        chosen = tier_named(tier) if isinstance(tier, str) else tier
        played = play(generate(chosen, seed), policy, **changes)
        return played, judge(played)

    return run


@pytest.fixture
def compat() -> Callable[..., CompatTally]:
    """Policy, tiers → the runs of the origin's sampling."""

    def made(policy: str, *tiers: str, **parameters: Any) -> CompatTally:
        tally = CompatTally(conduct=Conduct("m"))
        replay(compat_runs(tally, Conduct("m"), tiers or ("easy", "hard")), answer_with(policy, parameters))
        return tally

    return made


@pytest.fixture
def solvable() -> Callable[[str, int], list[Instance]]:
    """The first n instances of a tier without an outage."""

    def first(tier: str, n: int) -> list[Instance]:
        found: list[Instance] = []
        seed = 0
        while len(found) < n:
            instance = generate(tier_named(tier), seed)
            seed += 1
            if instance.down is None:
                found.append(instance)
        return found

    return first


@pytest.fixture
def blocked() -> Callable[[str], Instance]:
    """An instance of a tier whose right ending is `blocked`."""

    def first(tier: str) -> Instance:
        return next(i for seed in range(500) if (i := generate(tier_named(tier), seed)).down is not None)

    return first


@pytest.fixture
def server() -> Callable[..., Callable[[Ask], Answer]]:
    """A whole upstream in process: the survey's documents and a policy's chat."""

    def made(policy: str, capabilities: tuple[str, ...] = ("completion", "tools"), **parameters: Any) -> Callable[[Ask], Answer]:
        chat = answer_with(policy, parameters)
        documents: dict[str, object] = {
            "/api/version": {"version": "0.33.0"},
            "/api/tags": {"models": [{"name": "m:latest", "digest": "sha256:1", "size": 1}]},
            "/api/show": {"capabilities": list(capabilities), "model_info": {}},
            "/api/ps": {"models": []},
        }

        def answer(ask: Ask) -> Answer:
            if ask.path in documents:
                return Answer(ask.key, status=200, document=documents[ask.path])
            return chat(ask)

        return answer

    return made
