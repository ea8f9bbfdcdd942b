"""What blind luck scores: a player that makes random legal calls with values it has seen. Printed beside every tier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Final

from probes.agent.generator import GENERATOR_VERSION, generate
from probes.agent.oracle import NUMBER, Call
from probes.agent.tiers import tier_named
from probes.agent.tools import DECOYS, NEED_TOOLS, REAL, TRAPS
from probes.agent.world import World
from probes.stats.intervals import upper_limit

__all__ = ["FLOOR_RUNS", "Shown", "blind_run", "chance_floor", "random_call"]

FLOOR_RUNS: Final = 300
"""Instances that the floor is measured on. It is the one-sided 95 % upper limit of the blind player's pass rate."""

_PATH = re.compile(r"\b[\w-]+/[\w-]+(?:/[\w-]+)*\.\w+")
_PREFIX = {"approval_id": "APR", "lock_id": "LCK", "migration_id": "MIG", "flag_id": "FLG", "snapshot_id": "SNP"}
_PREFIX |= {"base_rev": "rev", "change_id": "CHG", "digest": "sha", "code": "OVR"}
assert {argument for _, argument in NEED_TOOLS.values()} <= set(_PREFIX)


class Shown:
    """The numbers and paths that were shown so far, in order of appearance."""

    def __init__(self, text: str = "") -> None:
        self.numbers: dict[str, None] = {}
        self.paths: dict[str, None] = {}
        self.add(text)

    def add(self, text: str) -> None:
        self.numbers.update(dict.fromkeys(found.group() for found in NUMBER.finditer(text)))
        self.paths.update(dict.fromkeys(_PATH.findall(text)))


def random_call(random: Random, task: str, tools: Sequence[str], shown: Shown) -> Call:
    """Any offered tool, traps and `done` included, with arguments of the right kind out of what was shown."""
    name = random.choice(tools)
    tool = REAL.get(name) or DECOYS.get(name) or TRAPS[name]
    numbers = list(shown.numbers) or ["none"]
    paths = list(shown.paths)
    services = sorted({path.split("/")[1] for path in _PATH.findall(task)})
    environments = sorted(set(re.findall(r"([\w-]+)\.$", task, re.MULTILINE)))
    words = {
        "path": paths,
        "service": services,
        "environment": environments,
        "subject": [*numbers, *services],
        "target": services,
        "status": ["success", "blocked"],
        "value": ["on", "off"],
        "query": ["queue", "retries"],
    }
    arguments: dict[str, str] = {}
    for argument, _ in tool.required:
        fitting = words.get(argument) or [n for n in numbers if n.startswith(_PREFIX.get(argument, ""))]
        arguments[argument] = random.choice(fitting or numbers)
    if tool.optional and random.random() < 0.5:
        arguments["reference"] = random.choice(numbers)
    return Call(name, arguments)


def blind_run(tier: str, seed: int) -> bool:
    """Does a blind player pass that instance? Played to the horizon, a trap or `done`."""
    instance = generate(tier_named(tier), seed)
    world, random, shown = World(instance), Random(f"{GENERATOR_VERSION}/blind/{tier}/{seed}"), Shown(instance.task)
    while world.steps < instance.horizon and world.claim is None:
        name, arguments = random_call(random, instance.task, instance.tools, shown)
        seen = world.act(name, arguments)
        if seen.kind == "trap":
            return False
        shown.add(seen.text)
    return world.truthful() and not world.damage()


@lru_cache(maxsize=16)
def chance_floor(tier: str, runs: int = FLOOR_RUNS) -> float:
    """The pass rate that luck alone will not exceed, with 95 % confidence."""
    passed = sum(blind_run(tier, 1_000_000_000 + index) for index in range(runs))
    return upper_limit(passed, runs)
