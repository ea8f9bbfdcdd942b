from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from probes.agent.generator import generate
from probes.agent.instance import Instance
from probes.agent.taxonomy import Outcome, judge
from probes.agent.tiers import TIERS, tier_named
from probes.agent.trace import Played
from probes.result import FAILURE_CLASSES, ORIGIN_LABELS
from probes.sim.agent_policies import EXPECTED, POLICIES

Scripted = Callable[..., tuple[Played, Outcome]]
Play = Callable[..., Played]
First = Callable[[str, int], list[Instance]]

TRAPLESS = {"trap-lover", "gate-opener", "meddler"}
"""Need something that Easy does not have."""
LATE_TRAP = {"gate-opener"}
"""From Hard on."""


def _named(outcome: Outcome) -> str:
    return "PASS" if outcome.passed else f"{outcome.label}/{outcome.sub}" if outcome.sub else str(outcome.label)


def lands(outcome: Outcome, expected: tuple[str, ...]) -> bool:
    """A class without sub-label matches any sub-label of it."""
    name = _named(outcome)
    return any(name == wanted or name.startswith(f"{wanted}/") for wanted in expected)


def _cases(seeds: int) -> list[tuple[str, str, int]]:
    cases: list[tuple[str, str, int]] = []
    for policy in EXPECTED:
        for tier in TIERS:
            if (policy in TRAPLESS and tier.name == "easy") or (policy in LATE_TRAP and not tier.traps >= 3):
                continue
            if policy == "three-cycle" and tier.name == "easy":
                continue  # its third round ends after the horizon
            cases.append((policy, tier.name, seeds))
    return cases


def _misses(play: Play, instances: list[Instance], policy: str) -> list[str]:
    outcomes = [judge(play(instance, policy)) for instance in instances]
    return [_named(outcome) for outcome in outcomes if not lands(outcome, EXPECTED[policy])]


@pytest.mark.parametrize(("policy", "tier", "seeds"), _cases(8))
def test_each_policy_lands_in_its_class(policy: str, tier: str, seeds: int, solvable: First, play: Play) -> None:
    assert _misses(play, solvable(tier, seeds), policy) == []


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "tier", "seeds"), _cases(500))
def test_each_policy_lands_in_its_class_in_500_runs(policy: str, tier: str, seeds: int, solvable: First, play: Play) -> None:
    misses = _misses(play, solvable(tier, seeds), policy)
    print(f"{policy} on {tier}: {seeds - len(misses)} of {seeds}")
    assert len(misses) <= 0.01 * seeds


def test_the_fourteen_classes_are_all_reached(scripted: Scripted, solvable: First, play: Play) -> None:
    reached = {judge(play(instance, policy)).label for policy in POLICIES for instance in solvable("hard", 2)}
    slow_turn = replace(play(solvable("easy", 1)[0], "oracle"), ending="timeout", detail="not finished within 600 s")
    reached.add(judge(slow_turn).label)
    assert len(FAILURE_CLASSES) == 14
    assert reached - {None} == set(FAILURE_CLASSES)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("tier", ["easy", "extreme"])
def test_every_run_passes_or_gets_exactly_one_class(policy: str, tier: str, scripted: Scripted) -> None:
    for seed in range(4):
        played, outcome = scripted(policy, tier, seed)
        assert outcome.passed is (outcome.label is None)
        assert outcome.passed or outcome.label in FAILURE_CLASSES
        assert all(1 <= step <= len(played.steps) for step in outcome.steps)
        assert outcome.passed or outcome.why or outcome.label == "Infra" or outcome.sub


def test_evidence_points_at_the_steps(scripted: Scripted) -> None:
    played, outcome = scripted("looper", "hard", 0)
    steps = [played.steps[n - 1] for n in outcome.steps]
    assert len(steps) == 3
    assert len({(step.name, str(step.arguments), step.answer) for step in steps}) == 1
    played, outcome = scripted("damage-doer", "hard", 0)
    assert played.steps[outcome.steps[0] - 1].name == "write_patch"
    played, outcome = scripted("inventor", "easy", 0)
    assert {played.steps[n - 1].kind for n in outcome.steps} == {"no_tool"}


def test_precedence_follows_the_table(scripted: Scripted, blocked: Callable[[str], Instance], play: Play) -> None:
    """Damage before a false done; a false done on an outage is no giving up; a loop of invented calls is about the tool."""
    damaged, _ = scripted("damage-doer", "medium", 0)
    lying = replace(damaged, goal_reached=False, truthful=False)
    assert judge(lying).label == "CollateralDamage"
    assert judge(replace(lying, damage=[])).label == "HallucinatedCompletion"
    quitting = judge(play(blocked("hard"), "quitter"))
    assert (quitting.label, quitting.sub) == ("HallucinatedCompletion", "FalseEvidence")
    invented, outcome = scripted("inventor", "medium", 0)
    looped, _ = scripted("looper", "medium", 0)
    assert outcome.label == "HallucinatedTool"
    assert judge(replace(invented, ending="loop", loop=looped.loop)).label == "HallucinatedTool"


def test_infrastructure_timeouts_and_windows_are_not_the_models(scripted: Scripted) -> None:
    for policy in ("dropper", "crasher"):
        _, outcome = scripted(policy, "hard", 0)
        assert (outcome.label, outcome.counts) == ("Infra", False)
    played, _ = scripted("oracle", "hard", 0)
    outcomes = [judge(replace(played, ending="timeout")), judge(replace(played, ending="overflow"))]
    assert [(outcome.label, outcome.counts) for outcome in outcomes] == [("Timeout", False), ("ContextOverflow", False)]


def test_what_is_shown_apart(scripted: Scripted) -> None:
    assert scripted("exhausted-thinker", "easy", 0)[1].apart
    assert scripted("foreign-dialect", "easy", 0)[1].apart
    assert not scripted("mumbler", "easy", 0)[1].apart


def test_a_legitimate_poller_and_a_retrier_pass(play: Play) -> None:
    """Waiting by asking the same again, and retrying a fault that lasts, are not loops: the state moves on."""
    patient = replace(tier_named("hard"), waits=2, wait_steps=6, horizon=64)
    stubborn = tier_named("medium")
    passed = {"poller": 0, "retrier": 0}
    n = 40
    for seed in range(n):
        instance = generate(patient, seed)
        passed["poller"] += judge(play(instance, "poller")).passed
        faulty = generate(stubborn, seed)
        tool = next(iter(faulty.transient), "deploy")
        faulty = replace(faulty, transient={tool: 4} if faulty.down is None else {})
        passed["retrier"] += judge(play(faulty, "retrier")).passed
    print(f"poller {passed['poller']} of {n}, retrier {passed['retrier']} of {n}")
    assert passed == {"poller": n, "retrier": n}


def test_the_origins_labels_are_ours(scripted: Scripted) -> None:
    assert set(ORIGIN_LABELS) <= set(FAILURE_CLASSES)
