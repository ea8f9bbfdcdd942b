from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from probes.agent.generator import GENERATOR_VERSION, generate
from probes.agent.instance import Instance
from probes.agent.oracle import play
from probes.agent.phrases import PHRASES
from probes.agent.tiers import MIN_SLACK, TIERS, Tier
from probes.agent.tools import DECOYS, TRAPS
from probes.agent.world import World

ROOT = Path(__file__).parents[3]


def _solve(tier: Tier, seeds: range) -> Counter[int]:
    """Generate, play with a fresh oracle, assert; lengths by count."""
    lengths: Counter[int] = Counter()
    for seed in seeds:
        instance = generate(tier, seed)
        world, steps = play(instance, instance.horizon)
        assert world.truthful(), instance.name
        assert not world.damage(), instance.name
        assert steps == instance.oracle_steps
        assert instance.horizon / steps >= MIN_SLACK, instance.name
        assert 0 < instance.optimum_steps <= steps
        lengths[steps] += 1
    return lengths


@pytest.mark.parametrize("tier", TIERS, ids=lambda t: t.name)
def test_the_oracle_solves_500_instances_in_time(tier: Tier) -> None:
    lengths = _solve(tier, range(500))
    assert sum(lengths.values()) == 500
    print(f"{tier.name}: oracle 500 of 500, steps {min(lengths)} to {max(lengths)} of {tier.horizon}")
    assert lengths.most_common(1)[0][0] == max(lengths)  # the full task; shorter ones end at an outage


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS, ids=lambda t: t.name)
def test_the_oracle_solves_10_000_instances_in_time(tier: Tier) -> None:
    lengths = _solve(tier, range(1_000, 11_000))
    print(f"{tier.name}: oracle 10 000 of 10 000, {dict(sorted(lengths.items()))}")


def _digest(instance: Instance) -> str:
    shown = [
        instance.task,
        instance.canary,
        instance.secret.hex(),
        list(instance.tools),
        sorted(instance.needs),
        sorted(instance.files),
    ]
    return sha256(json.dumps(shown).encode()).hexdigest()


def test_a_seed_gives_the_same_instance_in_every_process() -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests/probes/agent'); from probes.agent.generator import generate; "
        "from probes.agent.tiers import TIERS; import test_generator as t; "
        "print(' '.join(t._digest(generate(tier, 7)) for tier in TIERS))"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert done.stdout.split() == [_digest(generate(tier, 7)) for tier in TIERS]


@pytest.mark.parametrize("tier", TIERS, ids=lambda t: t.name)
def test_an_instance_is_what_its_tier_says(tier: Tier) -> None:
    for seed in range(40):
        instance = generate(tier, seed)
        assert instance.version == GENERATOR_VERSION
        assert len(instance.goals) == tier.goals
        assert sorted(len(goal.chain) for goal in instance.goals) == sorted(tier.chains)
        assert len(instance.decoys) == tier.decoys <= len(DECOYS)
        assert len(instance.traps) == tier.traps <= len(TRAPS)
        assert len(instance.constraints) == tier.constraints
        assert len(instance.files) == tier.goals + tier.distractors
        assert sum(need.reference is not None for need in instance.needs.values()) == tier.referenced
        assert instance.down is not None or sum(instance.transient.values()) == tier.transient_faults
        for constraint in instance.constraints:
            assert constraint.text in instance.task


@pytest.mark.parametrize("tier", TIERS[1:], ids=lambda t: t.name)
def test_prerequisites_and_values_are_hidden_from_the_task(tier: Tier) -> None:
    for seed in range(40):
        instance = generate(tier, seed)
        names = (
            set(instance.needs)
            | {need.receipt for need in instance.needs.values()}
            | {need.code for need in instance.needs.values()}
        )
        assert not [name for name in names if name and name in instance.task]
        assert not any(goal.change_id in instance.task for goal in instance.goals)
        assert not [
            word for word in ("chain", "hidden", "depth", "prerequisite", "decoy", "trap") if word in instance.task.lower()
        ]


def test_surfaces_vary_between_seeds() -> None:
    instances = [generate(TIERS[2], seed) for seed in range(60)]
    assert all(len(variants) >= 4 for variants in PHRASES.values())
    for key, variants in PHRASES.items():
        assert len({instance.wording[key] for instance in instances}) == len(variants)
    assert len({instance.tools for instance in instances}) == 60
    assert len({instance.canary for instance in instances}) == 60
    assert len({goal.service for instance in instances for goal in instance.goals}) > 80


def test_outages_are_few_and_never_on_easy() -> None:
    shares = {tier.name: sum(generate(tier, seed).down is not None for seed in range(150)) / 150 for tier in TIERS}
    assert shares["easy"] == 0
    assert all(0.02 < shares[name] <= 0.12 for name in ("medium", "hard", "extreme"))


def test_a_draft_that_takes_too_long_is_drawn_anew() -> None:
    """With a horizon that a full task misses by one step, only those that end early at an outage are accepted."""
    tight = replace(TIERS[2], horizon=27, persistent_share=0.5)
    lengths = [generate(tight, seed).oracle_steps for seed in range(20)]
    assert max(lengths) <= tight.max_oracle_steps == 20
    with pytest.raises(RuntimeError, match="can be solved within 20 steps"):
        generate(replace(tight, persistent_share=0.0), 1)


def test_the_optimum_is_reached_by_a_player_who_knows() -> None:
    """Distance falls by one with each call of a plan that knows every value: the optimum is a length, not a guess."""
    for seed in range(30):
        instance = generate(TIERS[2], seed)
        if instance.down is not None:
            continue
        world = World(instance)
        taken = 0
        for goal in instance.goals:
            world.act("read_file", {"path": goal.path})  # looked at, not counted: whoever knows need not read
            base = instance.files[goal.path].revision
            plan: list[tuple[str, dict[str, str]]] = [
                ("write_patch", {"path": goal.path, "base_rev": base, "change_id": goal.change_id})
            ]
            taken += _until_ok(world, plan)
            taken += _until_ok(world, [("run_tests", {"service": goal.service}), ("build", {"service": goal.service})])
            digest = world.state[f"build:{goal.service}"]
            for need_id in reversed(goal.chain):
                need = instance.needs[need_id]
                values = {"digest": digest, "revision": world.state[f"file:{goal.path}"]}
                values["receipt"] = instance.needs[need.behind].receipt if need.behind else ""
                tool, argument = _tool_of(need.kind)
                call = {argument: need_id} | ({"value": "off"} if need.kind == "flag" else {})
                if need.reference is not None:
                    call["reference"] = values[need.reference]
                taken += _until_ok(world, [(tool, call)])
                world.act("note", {"text": "waiting"})
                world.act("get_status", {"subject": need_id})
            deploy = {"service": goal.service, "environment": str(goal.environment), "digest": digest}
            taken += _until_ok(world, [("deploy", deploy)])
        assert world.goal_reached()
        assert taken + 1 == instance.optimum_steps


def _tool_of(kind: str) -> tuple[str, str]:
    from probes.agent.tools import NEED_TOOLS

    return NEED_TOOLS[kind]


def _until_ok(world: World, calls: list[tuple[str, dict[str, str]]]) -> int:
    taken = 0
    for name, arguments in calls:
        for _ in range(3):
            taken += 1
            if world.act(name, arguments).kind == "ok":
                break
        else:
            raise AssertionError((name, arguments))
    return taken
