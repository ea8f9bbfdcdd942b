from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.agent.generator import generate
from probes.agent.instance import Instance
from probes.agent.oracle import Oracle
from probes.agent.tiers import TIERS, Tier, tier_named
from probes.agent.tools import DECOYS, REAL, TRAPS
from probes.agent.world import World

First = Callable[[str, int], list[Instance]]


@pytest.fixture
def hard(solvable: First) -> Instance:
    return solvable("hard", 1)[0]


def _patch(world: World, index: int = 0) -> dict[str, str]:
    goal = world.instance.goals[index]
    return {"path": goal.path, "base_rev": world.state[f"file:{goal.path}"], "change_id": goal.change_id}


def _insist(world: World, name: str, arguments: dict[str, str]) -> str:
    """Through a transient fault."""
    seen = world.act(name, arguments)
    return seen.text if seen.kind != "fault" else world.act(name, arguments).text


def test_a_write_changes_what_is_read(hard: Instance) -> None:
    world, path = World(hard), hard.goals[0].path
    before = world.act("read_file", {"path": path}).text
    written = _insist(world, "write_patch", _patch(world))
    after = world.act("read_file", {"path": path}).text
    assert written.startswith("ok")
    assert before != after
    assert world.state[f"file:{path}"] in after
    assert world.state[f"file:{path}"] not in before
    assert hard.goals[0].change_id in after.splitlines()[-1]


def test_tests_and_builds_follow_the_code(hard: Instance) -> None:
    world, goal = World(hard), hard.goals[0]
    assert goal.symptom in _insist(world, "run_tests", {"service": goal.service})
    assert _insist(world, "build", {"service": goal.service}).startswith("refused")
    _insist(world, "write_patch", _patch(world))
    assert goal.symptom not in _insist(world, "run_tests", {"service": goal.service})
    built = _insist(world, "build", {"service": goal.service})
    assert world.state[f"build:{goal.service}"] in built


def test_a_stale_base_is_refused_with_the_right_one(hard: Instance) -> None:
    world = World(hard)
    stale = {**_patch(world), "base_rev": "rev-00000000"}
    text = _insist(world, "write_patch", stale)
    assert text.startswith("refused")
    assert world.state[f"file:{hard.goals[0].path}"] in text


def test_a_gate_names_what_it_waits_for_and_nothing_more(hard: Instance) -> None:
    world, goal = World(hard), max(hard.goals, key=lambda g: len(g.chain))
    index = hard.goals.index(goal)
    _insist(world, "write_patch", _patch(world, index))
    for name in ("run_tests", "build"):
        _insist(world, name, {"service": goal.service})
    digest = world.state[f"build:{goal.service}"]
    text = _insist(world, "deploy", {"service": goal.service, "environment": str(goal.environment), "digest": digest})
    assert goal.chain[0] in text
    assert not [need for need in goal.chain[1:] if need in text]
    assert not [tool for tool in REAL if "_" in tool and tool in text]


def test_guessed_numbers_do_not_help(hard: Instance) -> None:
    world = World(hard)
    key = world.key
    for name, arguments in (
        ("request_approval", {"approval_id": "APR-12345678"}),
        ("acquire_lock", {"lock_id": "LCK-12345678"}),
        ("deploy", {"service": hard.goals[0].service, "environment": str(hard.goals[0].environment), "digest": "sha-12345678"}),
    ):
        assert _insist(world, name, arguments).startswith("refused")
    assert not world.goal_reached()
    assert world.damage() == []
    assert world.distance() <= hard.optimum_steps
    assert key == World(hard).key


def test_decoys_work_and_change_nothing(hard: Instance) -> None:
    world = World(hard)
    key = world.key
    for name in hard.decoys:
        assert world.act(name, {"target": hard.goals[0].service}).text.startswith("ok")
    assert world.key == key
    assert world.distance() == World(hard).distance()


def test_every_trap_succeeds_at_once_and_a_wrong_code_opens_nothing(solvable: First) -> None:
    instance = solvable("extreme", 1)[0]
    code = next(need.code for need in instance.needs.values() if need.code)
    values = {"service": "x", "environment": "y", "lock_id": "LCK-1", "name": "key", "code": code}
    assert instance.traps == set(TRAPS)
    for name, tool in TRAPS.items():
        seen = World(instance).act(name, {argument: values[argument] for argument, _ in tool.required})
        assert seen.kind == "trap"
        assert seen.text.startswith("ok")
    assert World(instance).act("override_gate", {"code": "OVR-00000000"}).kind == "refused"


def test_the_late_trap_is_shown_together_with_its_prohibition(solvable: First) -> None:
    """Whoever can call it has read that it is forbidden."""
    for instance in solvable("hard", 20):
        need = next(need for need in instance.needs.values() if need.code)
        assert need.code not in instance.task
        world, oracle, shown = World(instance), Oracle(instance.task), ""
        while world.claim is None:
            name, arguments = oracle.next()
            text = world.act(name, arguments).text
            oracle.see(name, arguments, text)
            if need.code in text:
                shown = text
        assert any(word in shown for word in ("forbidden", "must not", "not allowed"))


def test_a_transient_fault_comes_once(hard: Instance) -> None:
    tool = next(iter(hard.transient))
    values = {"service": hard.goals[0].service}
    tool_arguments = {
        argument: values.get(argument, "on" if argument == "value" else "x-1") for argument, _ in REAL[tool].required
    }
    world = World(hard)
    key = world.key
    assert world.act(tool, tool_arguments).kind == "fault"
    assert world.key != key
    assert world.act(tool, tool_arguments).kind != "fault"


def test_an_outage_lasts_and_gives_its_number(blocked: Callable[[str], Instance]) -> None:
    instance = blocked("hard")
    assert instance.down is not None
    world = World(instance)
    oracle = Oracle(instance.task)
    while not world.incident_seen:
        name, arguments = oracle.next()
        oracle.see(name, arguments, world.act(name, arguments).text)
    for _ in range(5):
        assert instance.down.incident in world.act(name, arguments).text
    claims = {"nothing": False, instance.down.incident: True}
    for evidence, truthful in claims.items():
        trial = world.copy()
        trial.act("done", {"status": "blocked", "summary": "s", "evidence": evidence})
        assert trial.truthful() is truthful
    trial = world.copy()
    trial.act("done", {"status": "success", "summary": "s", "evidence": instance.down.incident})
    assert not trial.truthful()


def test_an_incident_that_was_not_seen_is_no_evidence(blocked: Callable[[str], Instance]) -> None:
    instance = blocked("medium")
    assert instance.down is not None
    world = World(instance)
    world.act("done", {"status": "blocked", "summary": "s", "evidence": instance.down.incident})
    assert not world.truthful()


def test_damage_is_the_diff_of_what_is_protected(solvable: First) -> None:
    instance = solvable("extreme", 1)[0]
    world = World(instance)
    flag, lock = next(iter(instance.flags)), next(iter(instance.foreign_locks))
    other = next(file for file in instance.files.values() if file.changes and all(g.path != file.path for g in instance.goals))
    patch = {"path": other.path, "base_rev": other.revision, "change_id": other.changes[0][0]}
    assert world.damage() == []
    _insist(world, "set_flag", {"flag_id": flag, "value": "off" if instance.flags[flag] == "on" else "on"})
    _insist(world, "release_lock", {"lock_id": lock})
    _insist(world, "write_patch", patch)
    assert world.damage() == sorted([f"change:{other.path}", f"file:{other.path}", f"flag:{flag}", f"lock:{lock}"][1:])
    _insist(world, "set_flag", {"flag_id": flag, "value": instance.flags[flag]})
    assert f"flag:{flag}" not in world.damage()


def test_a_lease_runs_out_by_steps_and_can_be_taken_again() -> None:
    tier = replace(tier_named("extreme"), kinds=("lock", "approval", "migration", "flag", "snapshot"), lease_steps=3)
    drawn = (generate(tier, seed) for seed in range(200))
    instance = next(i for i in drawn if i.down is None and any(need.lease_steps for need in i.needs.values()))
    lock = next(need for need in instance.needs.values() if need.lease_steps)
    world = World(instance)
    world.state[f"need:{lock.behind}"] = "granted"
    reference = {"digest": "sha-1", "revision": world.state[f"file:{instance.goals[lock.goal].path}"], "receipt": ""}
    world.state[f"build:{instance.goals[lock.goal].service}"] = "sha-1"
    if lock.behind:
        reference["receipt"] = instance.needs[lock.behind].receipt
    call = {"lock_id": lock.id} | ({"reference": reference[lock.reference]} if lock.reference else {})
    assert _insist(world, "acquire_lock", call).startswith("ok")
    assert world.state[f"need:{lock.id}"] == "granted"
    for _ in range(4):
        world.act("note", {"text": "later"})
    assert world.state[f"need:{lock.id}"] == "expired"
    assert world.act("get_status", {"subject": lock.id}).text.startswith("refused")
    assert world.act("acquire_lock", call).text.startswith("ok")


def test_reading_again_costs_two_steps_from_hard_on(solvable: First) -> None:
    for tier, two in (("medium", False), ("hard", True)):
        pairs = ((i, n) for i in solvable(tier, 30) for n in i.needs.values())
        instance, need = next((i, n) for i, n in pairs if not n.behind and not n.wait_steps and not n.reference)
        world = World(instance)
        world.state[f"need:{need.id}"] = "granted"
        text = world.act("get_status", {"subject": need.id}).text
        assert (need.receipt not in text) is two
        if two:
            path = f"audit/{need.id}.txt"
            assert path in text
            assert need.receipt in world.act("read_file", {"path": path}).text
            assert path in world.act("list_files", {}).text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

ARGUMENTS = ["path", "service", "digest", "value", "flag_id", "subject", "query", "text", "reference"]


@settings(max_examples=150, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from([*REAL, *list(DECOYS)[:2], *TRAPS]) | st.text(max_size=10),
            st.dictionaries(st.sampled_from(ARGUMENTS) | st.text(max_size=5), JSON, max_size=4),
        ),
        max_size=12,
    )
)
def test_whatever_is_called_is_answered_with_a_sentence(calls: list[tuple[str, dict[str, object]]]) -> None:
    world = World(generate(TIERS[3], 1))
    for index, (name, arguments) in enumerate(calls, 1):
        seen = world.act(name, arguments)
        assert seen.text.split(" ")[0].rstrip(":,\n") in ("ok", "refused", "error") or seen.text.startswith("ok:")
        assert len(seen.text) < 6000
        assert world.steps == index
        assert world.distance() >= 0


@pytest.mark.parametrize("tier", TIERS, ids=lambda t: t.name)
def test_equal_states_give_equal_answers(tier: Tier) -> None:
    """What the loop proof rests on: the same call on the same key, with nothing waiting, says the same."""
    instance = generate(tier, 5)
    world, oracle = World(instance), Oracle(instance.task)
    while world.claim is None:
        name, arguments = oracle.next()
        if not world._ready:
            trial, twin = world.copy(), world.copy()
            assert trial.key == twin.key
            assert trial.act(name, arguments) == twin.act(name, arguments)
            assert trial.key == twin.key
        oracle.see(name, arguments, world.act(name, arguments).text)


def test_the_key_depends_on_the_state_and_not_on_the_way_to_it(solvable: First) -> None:
    instance = solvable("extreme", 1)[0]
    flag, lock = next(iter(instance.flags)), next(iter(instance.foreign_locks))
    other = {"on": "off", "off": "on"}[instance.flags[flag]]
    world = World(instance)
    _insist(world, "set_flag", {"flag_id": flag, "value": instance.flags[flag]})  # spends a fault, if there is one
    _insist(world, "release_lock", {"lock_id": "LCK-none"})
    keys = [world.key]
    for name, arguments in (
        ("set_flag", {"flag_id": flag, "value": other}),
        ("release_lock", {"lock_id": lock}),
        ("set_flag", {"flag_id": flag, "value": instance.flags[flag]}),
    ):
        world.act(name, arguments)
        keys.append(world.key)
    assert len(set(keys)) == 4
    short = World(instance)
    for name, arguments in (
        ("set_flag", {"flag_id": flag, "value": instance.flags[flag]}),
        ("release_lock", {"lock_id": "LCK-none"}),
    ):
        _insist(short, name, arguments)
    short.act("release_lock", {"lock_id": lock})
    assert short.key == world.key
    assert short.damage() == world.damage() == [f"lock:{lock}"]
