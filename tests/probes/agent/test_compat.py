from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from probes.agent.compat import RUNS, CompatTally, Task, compat_runs, play_compat, tasks
from probes.agent.dialogue import Conduct
from probes.agent.generator import generate
from probes.agent.oracle import Oracle
from probes.agent.origin import aggregate
from probes.agent.taxonomy import judge
from probes.agent.tiers import tier_named
from probes.agent.trace import Played
from probes.agent.world import World
from probes.runner import replay
from probes.sim.agent_policies import answer_with

Run = Callable[..., CompatTally]


def test_another_draw_of_the_same_model_gives_other_numbers(compat: Run) -> None:
    """Nothing is written down: what is printed follows from what the policy does."""
    counts = set()
    for seed in range(5):
        found = aggregate(compat("post", "hard", seed=seed), "hard")
        assert found is not None
        assert sum(found.failures.values()) == 64
        counts.add(found.failures["InfiniteLoop"])
    assert len(counts) > 1
    always = aggregate(compat("post", "hard", loop=1.0), "hard")
    assert always is not None
    assert always.failures == {"InfiniteLoop": 64}


@pytest.mark.parametrize("tier", ["easy", "hard"])
def test_the_fixed_tasks_can_be_solved_and_are_fixed(tier: str, compat: Run) -> None:
    assert tasks(tier) == tasks(tier)
    tally = compat("oracle", tier)
    assert all(found.passed for found in tally.runs)
    assert len({task.instance.canary for task in tasks(tier)}) == len(tasks(tier))
    assert all("done" not in task.instance.tools for task in tasks(tier))


def test_the_origins_sampling() -> None:
    assert [len(tasks(tier)) for tier in ("easy", "medium", "hard", "extreme")] == [5, 0, 4, 0]
    assert RUNS == 5 * 5 + 4 * 16


def test_an_easy_task_is_at_most_two_calls(compat: Run) -> None:
    for task in tasks("easy"):
        world, oracle = World(task.instance), Oracle(task.instance.task)
        if task.goal[0][1] is None:
            world.act("run_tests", {"service": task.goal[0][0].partition(":")[2]})
        else:
            for _ in range(2):
                name, arguments = oracle.next()
                oracle.see(name, arguments, world.act(name, arguments).text)
        assert task.reached(world)
        assert not task.reached(World(task.instance))
    assert {found.turns for found in compat("oracle", "easy").runs} == {1, 2}


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        ("mumbler", "Hallucinated"),
        ("empty", "EmptyOutput"),
        ("foreign-dialect", "ForeignDialect"),
        ("broken-json", "MalformedJson"),
        ("trap-lover", "ForbiddenCall"),
        ("schema-breaker", "MalformedSchema"),
        ("inventor", "MalformedSchema"),
        ("looper", "InfiniteLoop"),
        ("decoy-lover", "InfiniteLoop"),
    ],
)
def test_their_labels_by_their_rules(policy: str, label: str, compat: Run) -> None:
    found = aggregate(compat(policy, "hard"), "hard")
    assert found is not None
    assert found.failures == {label: 64}


def test_a_spent_budget_is_their_infinite_loop_and_a_cycle_is_not_seen(compat: Run) -> None:
    """Theirs: only identical turns in a row. A cycle of two runs to the cap, and gets the same label there."""
    cycle = compat("two-cycle", "hard").runs[0]
    drift = compat("decoy-lover", "hard").runs[0]
    assert (cycle.label, cycle.turns) == (drift.label, drift.turns) == ("InfiniteLoop", 32)
    assert compat("looper", "hard").runs[0].turns < 10


def test_a_retried_fault_is_a_loop_to_them_and_none_to_us(play: Callable[..., Played]) -> None:
    """Three equal 503s in a row: by their rule identical turns without progress, by ours a state that moved on."""
    task = tasks("hard")[0]
    stubborn = replace(task, instance=replace(task.instance, transient={"deploy": 3}))
    run = replay(play_compat(stubborn, Conduct("m"), 0), answer_with("oracle"))
    assert run.label == "InfiniteLoop"
    once = replace(task, instance=replace(task.instance, transient={"deploy": 1}))
    assert replay(play_compat(once, Conduct("m"), 0), answer_with("oracle")).passed
    ours = generate(tier_named("hard"), 300)
    assert judge(play(replace(ours, transient={"deploy": 3}), "retrier")).passed


def test_a_failing_server_is_left_out(compat: Run) -> None:
    tally = compat("crasher", "easy")
    assert all(found.skipped for found in tally.runs)
    assert aggregate(tally, "easy") is None


def test_the_repeat_is_the_seed(compat: Run) -> None:
    seeds: list[int] = []
    task: Task = tasks("easy")[0]

    def answer(ask: Any) -> Any:
        seeds.append(ask.body["options"]["seed"])
        return answer_with("oracle")(ask)

    for repeat in range(3):
        replay(play_compat(task, Conduct("m"), repeat), answer)
    assert sorted(set(seeds)) == [0, 1, 2]


@pytest.mark.parametrize(("seed", "chance"), [(4711, 0.35), (1, 53 / 64), (2, 0.0), (3, 1.0)])
def test_a_persona_drawn_at_random_gives_its_own_truth(seed: int, chance: float) -> None:
    """The post's numbers are one draw of its policy, measured: any other draw is reported as that one."""
    fates = [
        Random(f"{seed}/{task.instance.canary}/{repeat}/fate").random() < chance for task in tasks("hard") for repeat in range(16)
    ]
    tally = CompatTally()
    replay(compat_runs(tally, Conduct("m"), ["hard"]), answer_with("post", {"seed": seed, "loop": chance}))
    labels = Counter(str(run.label) for run in tally.runs)
    print(f"seed {seed}, chance {chance:.2f}: {sum(fates)} of 64 loop, found {labels['InfiniteLoop']}")
    assert labels == Counter({"InfiniteLoop": sum(fates), "Hallucinated": 64 - sum(fates)})
