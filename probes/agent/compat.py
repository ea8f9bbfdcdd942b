"""`--compat quantamind`: the origin's sampling and definitions, beside ours and never instead.

Theirs, as read in its source (research note, section 3): a step is a model turn; there is no `done`, a run ends the moment
the goal is reached; Easy is 5 fixed tasks of at most two calls × k 5, Hard 4 fixed tasks × k 16; a turn cap, and three
identical turns without progress, are both "InfiniteLoop"; a turn without a call before the goal is "Hallucinated".
The tasks are our own and can be solved. Repeats of a fixed task at temperature 0 may be copies: `distinct` counts them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal

from probes.agent.dialogue import Conduct, request_body, result_messages, spoken_message
from probes.agent.generator import generate
from probes.agent.instance import Instance
from probes.agent.loops import canonical
from probes.agent.reading import Move, read_turn
from probes.agent.tiers import tier_named
from probes.agent.tools import TRAPS, problem_with
from probes.agent.world import World
from probes.ask import Answer, Ask, Note, Step
from probes.result import CompatRow, Host
from probes.result import Tier as TierSection
from probes.stats.repeats import per_instance

__all__ = ["RUNS", "TURNS_MOST", "CompatRun", "CompatTally", "Task", "compat_rows", "compat_runs", "play_compat", "tasks"]

Label = Literal[
    "InfiniteLoop",
    "Hallucinated",
    "ForbiddenCall",
    "MalformedSchema",
    "MalformedJson",
    "ForeignDialect",
    "EmptyOutput",
    "TurnTimeout",
]

_K: Final = {"easy": 5, "hard": 16}
_TURNS: Final = {"easy": 8, "hard": 32}
_TASKS: Final = {"easy": 5, "hard": 4}
_FIRST: Final = 300  # seed of the first fixed task
_BAR: Final = 0.80
_MAX_RECOVERY: Final = 2
_STALL: Final = 2  # identical turns after the first
_TURN_LIMIT_S: Final = 180.0
RUNS: Final = sum(_K[tier] * _TASKS[tier] for tier in _K)
TURNS_MOST: Final = sum(_K[tier] * _TASKS[tier] * _TURNS[tier] for tier in _K)


@dataclass(frozen=True, slots=True)
class Task:
    """One fixed task: an instance of ours without `done`, and the state keys that mean it is finished."""

    id: str
    tier: str
    instance: Instance
    goal: tuple[tuple[str, str | None], ...]  # (state key, value or None for "present"); () = the instance's own goal

    def reached(self, world: World) -> bool:
        if not self.goal:
            return world.goal_reached()
        return all(world.state.get(key) == value if value is not None else key in world.state for key, value in self.goal)


@cache
def tasks(tier: str) -> tuple[Task, ...]:
    """The fixed tasks of a tier; empty for tiers that the origin's coding ladder does not run here."""
    if tier == "easy":
        return tuple(_easy(index) for index in range(_TASKS["easy"]))
    if tier == "hard":
        solvable = (generate(tier_named("hard"), seed) for seed in range(_FIRST, _FIRST + 1000))
        chosen = [instance for _, instance in zip(range(_TASKS["hard"]), (i for i in solvable if i.down is None), strict=False)]
        return tuple(
            Task(f"hard-{n}", "hard", _without_done(instance, "\n".join(instance.task.splitlines()[:-1])), ())
            for n, instance in enumerate(chosen)
        )
    return ()


def _easy(index: int) -> Task:
    """Four tasks of two calls (look up the change, apply it) and one of a single call (run the tests)."""
    instance = generate(tier_named("easy"), _FIRST + index)
    goal = instance.goals[0]
    if index < _TASKS["easy"] - 1:
        text = f"In {goal.service}, {goal.symptom}. Apply the change that {goal.path} lists for it. Change no other file."
        return Task(f"easy-{index}", "easy", _without_done(instance, text), ((f"change:{goal.path}", goal.change_id),))
    other = next(file for file in instance.files.values() if file.path != goal.path and file.service)
    text = f"Run the tests of service {other.service} ({other.path}) once. Change no file."
    return Task(f"easy-{index}", "easy", _without_done(instance, text), ((f"tests:{other.service}", None),))


def _without_done(instance: Instance, text: str) -> Instance:
    return replace(instance, task=text, tools=tuple(tool for tool in instance.tools if tool != "done"))


# --- a run by their rules -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class CompatRun:
    """One run by the origin's rules. `label` is `None` when it passed; `skipped`: the server failed, it does not count."""

    task: str
    tier: str
    repeat: int
    passed: bool
    label: Label | None
    turns: int
    skipped: bool = False
    trace: tuple[str, ...] = ()  # the calls, canonical: equal traces are copies
    output_tokens: int = 0


@dataclass(slots=True)
class CompatTally:
    runs: list[CompatRun] = field(default_factory=list)

    def of(self, tier: str) -> list[CompatRun]:
        return [run for run in self.runs if run.tier == tier and not run.skipped]


def compat_runs(tally: CompatTally, conduct: Conduct, tiers: Iterable[str]) -> Generator[Step, Answer, None]:
    """All runs of the tiers that the origin's sampling knows, task by task."""
    for tier in tiers:
        for task in tasks(tier):
            for repeat in range(_K[tier]):
                run = yield from play_compat(task, conduct, repeat)
                tally.runs.append(run)
                what = "pass" if run.passed else str(run.label)
                yield Note(f"compat {task.id}: run {repeat + 1} of {_K[tier]}: {what}", len(tally.runs), RUNS)


def play_compat(task: Task, conduct: Conduct, repeat: int) -> Generator[Ask, Answer, CompatRun]:
    """One run. `options.seed` is the repeat's number: nothing to a greedy model, everything to a sampled or simulated one."""
    instance, world = task.instance, World(task.instance)
    body = request_body(instance, conduct, horizon=_TURNS[task.tier])
    body["options"]["seed"] = repeat
    messages: list[dict[str, Any]] = body["messages"]
    trace: list[str] = []
    tokens = errors = stalled = 0
    last: list[str] | None = None
    distance = world.distance(retries=False)

    def ended(label: Label | None, turn: int, tokens: int, *, skipped: bool = False) -> CompatRun:
        passed = label is None and not skipped
        return CompatRun(task.id, task.tier, repeat, passed, label, turn, skipped, tuple(trace), tokens)

    for turn in range(1, _TURNS[task.tier] + 1):
        sent = {**body, "messages": list(messages)}
        answer = yield Ask(f"compat/{task.id}/{repeat}/{turn}", "/api/chat", sent, limit_s=_TURN_LIMIT_S)
        tokens += answer.output_tokens or 0

        reading = read_turn(answer, native=conduct.path == "native", offered=instance.tools)
        if reading.sort in ("infra", "overflow"):
            return ended(None, turn, tokens, skipped=True)
        if reading.sort == "timeout":
            return ended("TurnTimeout", turn, tokens)
        if reading.sort != "calls":
            trace.append(reading.text[:200])
            foreign, broken = reading.sub == "ForeignDialect", reading.sort == "malformed"
            return ended(_without_call(reading.text, foreign=foreign, broken=broken), turn, tokens)
        if any(_forbidden(move) for move in reading.moves):
            return ended("ForbiddenCall", turn, tokens)
        answers: list[str] = []
        for move in reading.moves:
            trace.append(canonical(move.name, move.arguments or {}))
            seen = world.act(move.name, move.arguments if move.arguments is not None else {"": move.raw})
            answers.append(seen.text)
            errors += seen.kind in ("no_tool", "schema")
            if errors > _MAX_RECOVERY:
                return ended("MalformedSchema", turn, tokens)
            if task.reached(world):
                return ended(None, turn, tokens)
        calls = [canonical(move.name, move.arguments or {}) for move in reading.moves]
        progress = world.distance(retries=False) < distance  # their checkpoints: a retried fault reaches none
        distance = world.distance(retries=False)
        stalled = stalled + 1 if calls == last and not progress else 0
        last = calls
        if stalled >= _STALL:
            return ended("InfiniteLoop", turn, tokens)
        messages.append(spoken_message(reading, reading.moves, native=conduct.path == "native"))
        messages += result_messages(reading.moves, answers, native=conduct.path == "native")
    return ended("InfiniteLoop", _TURNS[task.tier], tokens)


def _forbidden(move: Move) -> bool:
    """A call of a forbidden tool that fits its schema: judged before anything else of its turn."""
    return move.name in TRAPS and move.arguments is not None and problem_with(move.name, move.arguments) is None


def _without_call(text: str, *, foreign: bool, broken: bool) -> Label:
    if not any(map(str.isalnum, text)):
        return "EmptyOutput"
    return "ForeignDialect" if foreign else "MalformedJson" if broken else "Hallucinated"


# --- their numbers ------------------------------------------------------------------------------------------------------

_ORDER: Final = ("easy", "medium", "hard", "extreme")


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier by the origin's aggregation."""

    name: str
    k: int
    tasks: int
    strict: int  # tasks of which all k runs passed
    mean_turns: float  # of the tasks' means
    distinct: int  # different transcripts among the runs
    runs: int
    failures: dict[str, int]

    @property
    def rate(self) -> float:
        return self.strict / self.tasks

    @property
    def status(self) -> str:
        return "CLEAR" if self.rate >= _BAR else "SATURATED" if self.strict else "FAIL"


def aggregate(tally: CompatTally, name: str) -> Tier | None:
    """`None` for a tier that was not run."""
    runs = tally.of(name)
    by_task = _by_task(tally, name)
    if not by_task:
        return None
    k = _K[name]
    strict = sum(len(found) >= k and all(run.passed for run in found) for found in by_task.values())
    means = [math.fsum(run.turns for run in found) / len(found) for found in by_task.values()]
    distinct = sum(len({run.trace for run in found}) for found in by_task.values())
    failures = Counter(str(run.label) for run in runs if run.label is not None)
    return Tier(name, k, len(by_task), strict, math.fsum(means) / len(means), distinct, len(runs), dict(failures.most_common()))


def _by_task(tally: CompatTally, name: str) -> dict[str, list[CompatRun]]:
    found: dict[str, list[CompatRun]] = {}
    for run in tally.of(name):
        found.setdefault(run.task, []).append(run)
    return found


def headline(tiers: Sequence[Tier]) -> tuple[str, str]:
    """Their verdict and its sentence: contiguous clears among the tiers that were run."""
    cleared: list[Tier] = []
    for tier in tiers:
        if tier.status != "CLEAR":
            break
        cleared.append(tier)
    if not tiers:
        return "NOT READY", "no tier was run"
    if not cleared:
        return "NOT READY", f"does not clear {tiers[0].name.capitalize()}, the easiest tier run"
    if len(cleared) == len(tiers):
        return "READY", f"clears every tier run, through {cleared[-1].name.capitalize()}"
    off = tiers[len(cleared)]
    return "CONDITIONAL", f"clears through {cleared[-1].name.capitalize()}; falls off at {off.name.capitalize()}"


def ram_class(host: Host) -> tuple[str, str] | None:
    """Their class of a machine, by RAM alone, and the tier they recommend for it."""
    if host.memory_bytes is None:
        return None
    gib = round(host.memory_bytes / 1024**3)
    for most, name, tier in ((15, "Constrained", "MEDIUM"), (32, "Mainstream", "MEDIUM"), (96, "Workstation", "HARD")):
        if gib <= most:
            return name, tier
    return "Frontier", "EXTREME"


def compat_rows(tally: CompatTally, host: Host, ours: Sequence[TierSection] = ()) -> tuple[list[CompatRow], dict[str, float]]:
    """The rows of the compat section and their values by stable name; our own tiers' reading stands beside each."""
    rows: list[CompatRow] = []
    values: dict[str, float] = {}
    ran = [tier for name in _ORDER if (tier := aggregate(tally, name)) is not None]
    mine = {section.tier: section for section in ours}
    for name in _ORDER:
        tier = next((tier for tier in ran if tier.name == name), None)
        beside = _ours(mine.get(name))
        if tier is None:
            rows.append(CompatRow(name=f"{name.capitalize()} tier", theirs="NOT TESTED", ours=beside))
            continue
        copies = tier.runs - tier.distinct
        note = f"{tier.strict} of {tier.tasks} tasks passed {tier.k} of {tier.k}"
        if copies:
            note += f"; {copies} of {tier.runs} runs are copies of another run of the same task: {tier.distinct} observations"
        theirs = f"{100 * tier.rate:.0f} % (Pass^{tier.k}), {tier.mean_turns:.1f} steps, {tier.status}"
        rows.append(CompatRow(name=f"{name.capitalize()} tier", theirs=theirs, ours=beside, note=note))
        values |= {f"{name}_rate": tier.rate, f"{name}_k": tier.k, f"{name}_steps": tier.mean_turns, f"{name}_runs": tier.runs}
        values[f"{name}_distinct"] = tier.distinct
        counts = [(sum(r.passed for r in runs), len(runs)) for runs in _by_task(tally, name).values()]
        if (estimate := per_instance(counts, tier.k)) is not None:
            values[f"{name}_pass_hat_k"] = estimate
    hardest = ran[-1] if ran else None
    if hardest is not None and (total := sum(hardest.failures.values())):
        parts = []
        for label, count in hardest.failures.items():
            parts.append(f"{label} {100 * count / total:.0f} % ({count})")
            values[f"{hardest.name}_{label}"] = count
        section = mine.get(hardest.name)
        beside = (
            ", ".join(f"{label} {count}" for label, count in section.failures.items()) if section and section.failures else None
        )
        note = "InfiniteLoop here includes a spent turn budget, Hallucinated any turn without a call before the goal"
        rows.append(CompatRow(name="Failure taxonomy", theirs=f"{', '.join(parts)} of {total}", ours=beside, note=note))
        values[f"{hardest.name}_failures"] = total
    word, sentence = headline(ran)
    rows.append(CompatRow(name="Verdict", theirs=f"{word}: {sentence}"))
    hardware = ram_class(host)
    if hardware is not None:
        rows.append(CompatRow(name="Hardware", theirs=f"{hardware[0]}, HW recommends {hardware[1]}", note="by RAM alone"))
    return rows, values


def _ours(section: TierSection | None) -> str | None:
    if section is None or section.status == "NOT TESTED":
        return None
    steps = f", {section.steps.value:.1f} steps" if section.steps is not None else ""
    least = f", per run at least {section.per_run_at_least:.2f}" if section.per_run_at_least is not None else ""
    return f"{section.status}: {section.passed} of {section.n} fresh instances{steps}{least}"
