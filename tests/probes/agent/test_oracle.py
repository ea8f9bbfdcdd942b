from __future__ import annotations

from random import Random

import pytest

from probes.agent.generator import generate
from probes.agent.oracle import NUMBER, Call, Oracle, play
from probes.agent.tiers import TIERS, Tier
from probes.agent.tools import DECOYS, REAL
from probes.agent.world import World


def _walk(instance_seed: int, tier: Tier, steps: int) -> tuple[World, Oracle]:
    """A walker with random legal calls, every second one the oracle's own; never a trap, never done."""
    instance = generate(tier, instance_seed)
    random, world, watching = Random(instance_seed), World(instance), Oracle(instance.task)
    shown = instance.task
    services = [file.service for file in instance.files.values() if file.service]
    ids = [*instance.needs, *instance.flags, *instance.foreign_locks]
    paths = [*instance.files, *(f"audit/{need}.txt" for need in instance.needs)]
    legal = [name for name in instance.tools if name not in instance.traps and name != "done"]

    def value(argument: str) -> str:
        numbers = [found.group() for found in NUMBER.finditer(shown)] or ["nothing"]
        words = {"service": services, "environment": list(instance.environments), "path": paths, "value": ["on", "off"]}
        if argument in words:
            return random.choice(words[argument])
        return random.choice(ids or numbers) if argument.endswith("_id") and argument != "change_id" else random.choice(numbers)

    for _ in range(steps):
        if random.random() < 0.5:
            call = watching.next()
            if call.name == "done":
                break
        else:
            name = random.choice(legal)
            tool = REAL.get(name) or DECOYS[name]
            chosen = [a for a, _ in tool.required] + [a for a, _ in tool.optional if random.random() < 0.3]
            call = Call(name, {argument: value(argument) for argument in chosen})
        seen = world.act(call.name, call.arguments)
        watching.see(call.name, call.arguments, seen.text)
        shown += seen.text
    return world, watching


def _finish(world: World, oracle: Oracle) -> int:
    begun = world.steps
    while world.claim is None and world.steps < begun + 200:
        name, arguments = oracle.next()
        oracle.see(name, arguments, world.act(name, arguments).text)
    return world.steps - begun


@pytest.mark.parametrize("tier", TIERS, ids=lambda t: t.name)
@pytest.mark.parametrize("watching", [True, False], ids=["watching", "fresh"])
def test_there_is_no_dead_end(tier: Tier, watching: bool) -> None:
    """From wherever a walker leaves the world an oracle still reaches a truthful end: one that watched, and one that is new."""
    for seed in range(70):
        world, watched = _walk(seed, tier, Random(seed).randrange(80))
        taken = _finish(world, watched if watching else Oracle(world.instance.task))
        assert world.truthful(), world.instance.name
        assert taken <= tier.max_oracle_steps


def test_the_oracle_sees_only_text() -> None:
    """It solves an instance from the task and the answers alone: given another's answers it goes another way."""
    first, second = (generate(TIERS[1], seed) for seed in (3, 4))
    oracle, world = Oracle(first.task), World(second)
    for _ in range(30):
        call = oracle.next()
        oracle.see(call.name, call.arguments, world.act(call.name, call.arguments).text)
    assert not world.goal_reached()


def test_an_outage_ends_in_a_truthful_blocked() -> None:
    blocked = [generate(tier, seed) for tier in TIERS[1:] for seed in range(90)]
    blocked = [instance for instance in blocked if instance.down is not None]
    assert len(blocked) > 10
    for instance in blocked:
        world, _ = play(instance, instance.horizon)
        assert world.claim is not None
        assert world.claim[0] == "blocked"
        assert world.truthful()


def test_a_long_wait_is_waited_for() -> None:
    from dataclasses import replace

    tier = replace(TIERS[2], waits=2, wait_steps=6, horizon=60)
    for seed in range(30):
        instance = generate(tier, seed)
        world, steps = play(instance, 60)
        assert world.truthful()
        assert instance.down is not None or steps >= generate(TIERS[2], seed).oracle_steps
