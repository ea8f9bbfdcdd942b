from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from random import Random
from typing import Any

import pytest

from probes.agent.compat import (
    RUNS,
    CompatTally,
    Task,
    aggregate,
    compat_rows,
    compat_runs,
    headline,
    play_compat,
    ram_class,
    tasks,
)
from probes.agent.dialogue import Conduct
from probes.agent.generator import generate
from probes.agent.oracle import Oracle
from probes.agent.taxonomy import judge
from probes.agent.tiers import tier_named
from probes.agent.trace import Played
from probes.agent.world import World
from probes.hardware import describe
from probes.result import Host
from probes.runner import replay
from probes.sim.agent_policies import answer_with

Run = Callable[..., CompatTally]


@pytest.fixture
def run() -> Run:
    def made(policy: str, *tiers: str, **parameters: Any) -> CompatTally:
        tally = CompatTally()
        replay(compat_runs(tally, Conduct("m"), tiers or ("easy", "hard")), answer_with(policy, parameters))
        return tally

    return made


def test_the_posts_numbers_are_measured(run: Run) -> None:
    tally = run("post")
    rows, values = compat_rows(tally, describe("apple:64GiB"))
    shown = {row.name: row.theirs for row in rows}
    print(shown)
    assert shown["Easy tier"].startswith("100 % (Pass^5), 1.8 steps")
    assert shown["Medium tier"] == shown["Extreme tier"] == "NOT TESTED"
    assert shown["Hard tier"].startswith("0 % (Pass^16), 7.4 steps")
    assert shown["Failure taxonomy"] == "InfiniteLoop 83 % (53), Hallucinated 17 % (11) of 64"
    assert shown["Verdict"] == "CONDITIONAL: clears through Easy; falls off at Hard"
    assert shown["Hardware"] == "Workstation, HW recommends HARD"
    assert values["hard_failures"] == 64


def test_another_draw_of_the_same_model_gives_other_numbers(run: Run) -> None:
    """Nothing is written down: what is printed follows from what the policy does."""
    counts = set()
    for seed in range(5):
        found = aggregate(run("post", "hard", seed=seed), "hard")
        assert found is not None
        assert sum(found.failures.values()) == 64
        counts.add(found.failures["InfiniteLoop"])
    assert len(counts) > 1
    always = aggregate(run("post", "hard", loop=1.0), "hard")
    assert always is not None
    assert always.failures == {"InfiniteLoop": 64}


@pytest.mark.parametrize("tier", ["easy", "hard"])
def test_the_fixed_tasks_can_be_solved_and_are_fixed(tier: str, run: Run) -> None:
    assert tasks(tier) == tasks(tier)
    tally = run("oracle", tier)
    assert all(found.passed for found in tally.runs)
    assert len({task.instance.canary for task in tasks(tier)}) == len(tasks(tier))
    assert all("done" not in task.instance.tools for task in tasks(tier))


def test_the_origins_sampling() -> None:
    assert [len(tasks(tier)) for tier in ("easy", "medium", "hard", "extreme")] == [5, 0, 4, 0]
    assert RUNS == 5 * 5 + 4 * 16


def test_an_easy_task_is_at_most_two_calls(run: Run) -> None:
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
    assert {found.turns for found in run("oracle", "easy").runs} == {1, 2}


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
def test_their_labels_by_their_rules(policy: str, label: str, run: Run) -> None:
    found = aggregate(run(policy, "hard"), "hard")
    assert found is not None
    assert found.failures == {label: 64}


def test_a_spent_budget_is_their_infinite_loop_and_a_cycle_is_not_seen(run: Run) -> None:
    """Theirs: only identical turns in a row. A cycle of two runs to the cap, and gets the same label there."""
    cycle = run("two-cycle", "hard").runs[0]
    drift = run("decoy-lover", "hard").runs[0]
    assert (cycle.label, cycle.turns) == (drift.label, drift.turns) == ("InfiniteLoop", 32)
    assert run("looper", "hard").runs[0].turns < 10


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


def test_a_failing_server_is_left_out(run: Run) -> None:
    tally = run("crasher", "easy")
    assert all(found.skipped for found in tally.runs)
    assert aggregate(tally, "easy") is None


def test_copies_are_counted(run: Run) -> None:
    found = aggregate(run("looper", "hard"), "hard")
    assert found is not None
    assert (found.runs, found.distinct) == (64, 4)
    rows, _ = compat_rows(run("looper", "hard"), Host())
    assert any(row.note is not None and "copies" in row.note for row in rows)


def test_their_verdict_by_contiguous_clears(run: Run) -> None:
    easy, hard = (aggregate(run("oracle", tier), tier) for tier in ("easy", "hard"))
    failed = {tier: aggregate(run("looper", tier), tier) for tier in ("easy", "hard")}
    assert easy is not None
    assert hard is not None
    assert headline([easy, hard])[0] == "READY"
    words = {headline([a, b])[0] for a, b in combinations([t for t in (easy, failed["hard"]) if t is not None], 2)}
    assert words == {"CONDITIONAL"}
    assert headline([t for t in failed.values() if t is not None])[0] == "NOT READY"
    assert headline([])[0] == "NOT READY"


def test_their_hardware_class_is_by_ram() -> None:
    classes = {"cpu:15GiB": "Constrained", "cpu:16GiB": "Mainstream", "apple:96GiB": "Workstation", "apple:97GiB": "Frontier"}
    for told, expected in classes.items():
        found = ram_class(describe(told))
        assert found is not None
        assert found[0] == expected
    assert ram_class(Host()) is None


def test_the_repeat_is_the_seed(run: Run) -> None:
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
