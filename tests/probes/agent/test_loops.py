from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from probes.agent.generator import generate
from probes.agent.instance import Instance
from probes.agent.loops import COPIES, Loop, LoopWatch, canonical
from probes.agent.taxonomy import Outcome
from probes.agent.tiers import tier_named
from probes.agent.trace import Played
from probes.agent.world import World

Scripted = Callable[..., tuple[Played, Outcome]]
First = Callable[[str, int], list[Instance]]


def _watch(world: World, calls: list[tuple[str, dict[str, object]]]) -> tuple[int, Loop] | None:
    watch, known = LoopWatch(), set[str]()
    for step, (name, arguments) in enumerate(calls, 1):
        key = world.key
        text = world.act(name, arguments).text
        progress = world.key != key or text not in known
        known.add(text)
        if (loop := watch.see(step, name, arguments, key, text, progress=progress, world=world)) is not None:
            return step, loop
    return None


def test_key_order_does_not_matter() -> None:
    assert canonical("a", {"x": 1, "y": {"b": 2, "a": 3}}) == canonical("a", {"y": {"a": 3, "b": 2}, "x": 1})
    assert canonical("a", {"x": 1}) != canonical("a", {"x": "1"})


def test_a_repeated_reading_is_a_loop_at_its_third_useless_copy(solvable: First) -> None:
    world = World(solvable("hard", 1)[0])
    found = _watch(world, [("list_files", {})] * 10)
    assert found is not None
    step, loop = found
    assert step == 1 + COPIES  # the first one taught something
    assert (loop.steps, loop.period, loop.form) == ((2, 3, 4), 1, "repeat")
    assert loop.proof_steps == world.instance.horizon - 4


def test_cycles_of_up_to_four_calls_are_found_with_their_period(solvable: First) -> None:
    calls: list[tuple[str, dict[str, object]]] = [("search", {"query": f"word{n}"}) for n in range(4)]
    for period in (2, 3, 4):
        found = _watch(World(solvable("hard", 1)[0]), calls[:period] * 10)
        assert found is not None
        assert found[1].period == period
        assert found[1].form == "cycle"


def test_copies_with_other_useless_calls_between_are_scattered(solvable: First) -> None:
    def search(word: str) -> tuple[str, dict[str, object]]:
        return "search", {"query": word}

    mixed = [search(word) for word in ("same", "a", "b", "same", "c", "same", "d", "same")]
    found = _watch(World(solvable("hard", 1)[0]), mixed)
    assert found is not None
    step, loop = found
    assert (step, loop.steps, loop.form) == (8, (4, 6, 8), "cycle") or (loop.form, loop.period) == ("scattered", None)


def test_progress_between_the_copies_makes_it_no_loop(solvable: First) -> None:
    world = World(solvable("hard", 1)[0])
    listing: tuple[str, dict[str, object]] = ("list_files", {})
    files = list(world.instance.files)
    calls = [call for path in files[:6] for call in (listing, ("read_file", {"path": path}))]
    assert _watch(world, calls) is None  # type: ignore[arg-type]


def test_waiting_is_no_loop_because_the_state_moves() -> None:
    """The status says the same words again and again; the world is another one each time."""
    tier = replace(tier_named("hard"), waits=4, wait_steps=8, horizon=80)
    instance = next(i for seed in range(50) if (i := generate(tier, seed)).down is None)
    need = next(n for n in instance.needs.values() if n.behind is None and n.reference is None)
    world = World(instance)
    tool = {"approval": "request_approval", "lock": "acquire_lock", "migration": "run_migration", "snapshot": "take_snapshot"}
    argument = {"approval": "approval_id", "lock": "lock_id", "migration": "migration_id", "snapshot": "snapshot_id"}
    call: tuple[str, dict[str, object]] = (tool.get(need.kind, "set_flag"), {argument.get(need.kind, "flag_id"): need.id})
    if need.kind == "flag":
        call[1]["value"] = "off"
    for _ in range(2):  # through a fault, if there is one
        world.act(*call)
    trial = world.copy()
    texts = [trial.act("get_status", {"subject": need.id}).text for _ in range(5)]
    assert len(set(texts)) == 1
    assert "pending" in texts[0] or "review" in texts[0]
    assert _watch(world, [("get_status", {"subject": need.id})] * 5) is None


def test_what_time_alone_will_change_is_not_proven() -> None:
    """A held lock says the same each time and its age is no part of the state; on a copy of the world the lease runs out."""
    drawn = (generate(replace(tier_named("extreme"), lease_steps=12), seed) for seed in range(200))
    instance = next(i for i in drawn if i.down is None and any(need.lease_steps for need in i.needs.values()))
    lock = next(need.id for need in instance.needs.values() if need.lease_steps)
    world = World(instance)
    world.state[f"need:{lock}"] = "granted"
    status: tuple[str, dict[str, object]] = ("get_status", {"subject": lock})
    for held, proven in ((12, False), (1000, True)):
        trial = world.copy()
        trial._expires[lock] = held
        assert (_watch(trial, [status] * 6) is not None) is proven


def test_the_proof_is_right(scripted: Scripted) -> None:
    """What was proven is so: let run to the horizon, no looper ever gets another answer."""
    for seed in range(12):
        played, outcome = scripted("looper", "hard", seed, go_on=True)
        if outcome.label != "InfiniteLoop":
            continue
        assert played.loop is not None
        after = [step for step in played.steps if step.n > played.loop.steps[-1]]
        assert len(after) == played.loop.proof_steps
        assert {step.answer for step in after} == {played.steps[played.loop.steps[0] - 1].answer}
        assert played.went_on
        assert played.recovered is False


def test_a_forgetful_agent_that_was_let_go_on_can_recover(scripted: Scripted) -> None:
    """The measured false-stop rate is measured: some loops of an agent that only forgets now and then do end."""
    recovered = [
        played.recovered
        for seed in range(40)
        if (played := scripted("forgetful", "medium", seed, go_on=True, forget=0.45)[0]).went_on
    ]
    assert recovered
    assert True in recovered
