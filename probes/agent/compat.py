"""`--compat quantamind`: the origin's sampling and definitions, beside ours and never instead.

Theirs, as read in its source (research note, section 3): a step is a model turn; there is no `done`, a run ends the moment
the goal is reached; Easy is 5 fixed tasks of at most two calls × k 5, Hard 4 fixed tasks × k 16; a turn cap, and three
identical turns without progress, are both "InfiniteLoop"; a turn without a call before the goal is "Hallucinated".
The tasks are our own and can be solved. Repeats of a fixed task at temperature 0 may be copies: `distinct` counts them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal

from probes.agent.dialogue import Conduct, request_body, result_messages, spoken_message
from probes.agent.generator import generate
from probes.agent.instance import Instance
from probes.agent.loops import canonical
from probes.agent.oracle import Call
from probes.agent.reading import EXCERPT, Move, Reading, read_turn
from probes.agent.run import facts_in, known_at_first
from probes.agent.tiers import tier_named
from probes.agent.tools import TRAPS, problem_with
from probes.agent.trace import StepKind, StepSeen, TurnSeen
from probes.agent.world import World
from probes.ask import Answer, Ask, Note, Step

__all__ = [
    "RUNS",
    "TURNS",
    "TURNS_MOST",
    "CompatRun",
    "CompatTally",
    "K",
    "Task",
    "compat_runs",
    "play_compat",
    "tasks",
]

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

K: Final = {"easy": 5, "hard": 16}
TURNS: Final = {"easy": 8, "hard": 32}
"""Model turns after which a run is ended and called InfiniteLoop."""
_TASKS: Final = {"easy": 5, "hard": 4}
_FIRST: Final = 300  # seed of the first fixed task
_MAX_RECOVERY: Final = 2
_STALL: Final = 2  # identical turns after the first
_TURN_LIMIT_S: Final = 180.0
RUNS: Final = sum(K[tier] * _TASKS[tier] for tier in K)
TURNS_MOST: Final = sum(K[tier] * _TASKS[tier] * TURNS[tier] for tier in K)


@dataclass(frozen=True, slots=True)
class Task:
    """One fixed task: an instance of ours without `done`, and the state keys that mean it is finished."""

    id: str
    tier: str
    instance: Instance
    goal: tuple[tuple[str, str | None], ...]  # (state key, value or None for "present"); () = the instance's own goal
    asks: Call | None = None  # the one call that is all it asks for; None: what the oracle reads in its text

    def reached(self, world: World) -> bool:
        if not self.goal:
            return world.goal_reached()
        return all(world.state.get(key) == value if value is not None else key in world.state for key, value in self.goal)

    def left(self, world: World) -> int:
        """Calls to the goal for a player who knows everything; there is no `done` to call."""
        return world.distance() - 1 if not self.goal else 0 if self.reached(world) else 1


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
    asked = Call("run_tests", {"service": str(other.service)})
    return Task(f"easy-{index}", "easy", _without_done(instance, text), ((f"tests:{other.service}", None),), asked)


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
    why: str = ""  # it did not pass, in words
    steps: list[StepSeen] = field(default_factory=list, repr=False)  # one a call, or a turn without one
    said: list[TurnSeen] = field(default_factory=list, repr=False)
    evidence: tuple[int, ...] = ()  # the steps that show why

    @property
    def key(self) -> str:
        """Names it: `compat/hard-2/7` is the eighth run of the third fixed task of Hard."""
        return f"compat/{self.task}/{self.repeat}"


@dataclass(slots=True)
class CompatTally:
    runs: list[CompatRun] = field(default_factory=list)
    conduct: Conduct | None = None  # how they are made

    def of(self, tier: str) -> list[CompatRun]:
        return [run for run in self.runs if run.tier == tier and not run.skipped]


def compat_runs(tally: CompatTally, conduct: Conduct, tiers: Iterable[str]) -> Generator[Step, Answer, None]:
    """All runs of the tiers that the origin's sampling knows, task by task."""
    for tier in tiers:
        for task in tasks(tier):
            for repeat in range(K[tier]):
                run = yield from play_compat(task, conduct, repeat)
                tally.runs.append(run)
                what = "pass" if run.passed else str(run.label)
                yield Note(f"compat {task.id}: run {repeat + 1} of {K[tier]}: {what}", len(tally.runs), RUNS)


def play_compat(task: Task, conduct: Conduct, repeat: int) -> Generator[Ask, Answer, CompatRun]:
    """One run. `options.seed` is the repeat's number: nothing to a greedy model, everything to a sampled or simulated one."""
    instance, world, cap = task.instance, World(task.instance), TURNS[task.tier]
    native = conduct.path == "native"
    body = request_body(instance, conduct, horizon=cap)
    body["options"]["seed"] = repeat
    messages: list[dict[str, Any]] = body["messages"]
    record = _Record(task, world)
    run = CompatRun(task.id, task.tier, repeat, False, None, 0, steps=record.steps, said=record.turns)
    errors = stalled = 0
    last: list[str] | None = None
    distance = world.distance(retries=False)

    def ended(label: Label | None, why: str = "", steps: Iterable[StepSeen] | None = None, *, skipped: bool = False) -> CompatRun:
        run.passed, run.label, run.skipped, run.why = label is None and not skipped, label, skipped, why
        run.trace = tuple(record.trace)
        run.evidence = () if run.passed else tuple(step.n for step in (record.steps[-1:] if steps is None else steps))
        return run

    for turn in range(1, cap + 1):
        sent = {**body, "messages": list(messages)}
        answer = yield Ask(f"{run.key}/{turn}", "/api/chat", sent, limit_s=_TURN_LIMIT_S)
        run.turns, run.output_tokens = turn, run.output_tokens + (answer.output_tokens or 0)

        reading = read_turn(answer, native=native, offered=instance.tools)
        record.turn(answer, reading)
        if reading.sort in ("infra", "overflow"):
            return ended(None, f"the server failed, so it does not count: {reading.detail}", (), skipped=True)
        if reading.sort == "timeout":
            return ended("TurnTimeout", f"turn {turn} took longer than {_TURN_LIMIT_S:.0f} s", ())
        if reading.sort != "calls":
            record.without_call(reading)
            foreign, broken = reading.sub == "ForeignDialect", reading.sort == "malformed"
            label = _without_call(reading.text, foreign=foreign, broken=broken)
            return ended(label, f"turn {turn} made no call that can be read, and the goal was not reached")
        if (forbidden := next((move for move in reading.moves if _forbidden(move)), None)) is not None:
            record.step("trap", forbidden, "(not carried out: a forbidden call ends the run)")
            return ended("ForbiddenCall", f"forbidden call: {forbidden.name}")
        answers: list[str] = []
        for move in reading.moves:
            seen = world.act(move.name, move.arguments if move.arguments is not None else {"": move.raw})
            record.step(seen.kind, move, seen.text)
            answers.append(seen.text)
            errors += seen.kind in ("no_tool", "schema")
            if errors > _MAX_RECOVERY:
                wrong = [step for step in record.steps if step.kind in ("no_tool", "schema")]
                return ended("MalformedSchema", f"{errors} calls that no offered tool takes", wrong)
            if task.reached(world):
                return ended(None)
        calls = [canonical(move.name, move.arguments or {}) for move in reading.moves]
        progress = world.distance(retries=False) < distance  # their checkpoints: a retried fault reaches none
        distance = world.distance(retries=False)
        stalled = stalled + 1 if calls == last and not progress else 0
        last = calls
        if stalled >= _STALL:
            same = [step for step in record.steps if step.turn >= turn - _STALL]
            return ended("InfiniteLoop", f"turns {turn - _STALL} to {turn} are identical and brought the goal no nearer", same)
        messages.append(spoken_message(reading, reading.moves, native=native))
        messages += result_messages(reading.moves, answers, native=native)
    return ended("InfiniteLoop", f"{cap} turns, its cap, without the goal: that is InfiniteLoop too")


class _Record:
    """A run's steps and turns as they happen."""

    def __init__(self, task: Task, world: World) -> None:
        self.steps: list[StepSeen] = []
        self.turns: list[TurnSeen] = []
        self.trace: list[str] = []
        self._task, self._world, self._key = task, world, world.key
        self._known = known_at_first(task.instance)

    def turn(self, answer: Answer, reading: Reading) -> None:
        counted = answer.input_tokens, answer.output_tokens, answer.total_s, bool(answer.thinking)
        self.turns.append(TurnSeen(len(self.turns) + 1, answer.key, reading.text[:EXCERPT], len(reading.moves), *counted))

    def step(self, kind: StepKind, move: Move, text: str) -> None:
        """`move` was made, and the world is as it left it."""
        arguments = move.arguments or {}
        self.trace += [canonical(move.name, arguments)] if kind != "trap" else []
        learned = [fact for fact in facts_in(text) if fact not in self._known and fact not in arguments.values()]
        self._known.update(learned)
        self._add(kind, move.name, arguments, text, tuple(dict.fromkeys(learned)), move.raw if move.arguments is None else "")

    def without_call(self, reading: Reading) -> None:
        self.trace.append(reading.text[:200])
        kind: StepKind = "malformed" if reading.sort == "malformed" else "no_call"
        self._add(kind, "", {}, "(a turn without a call ends the run)", (), reading.detail or reading.text[:EXCERPT])

    def _add(
        self, kind: StepKind, name: str, arguments: dict[str, object], text: str, learned: tuple[str, ...], detail: str
    ) -> None:
        changed, self._key = self._world.key != self._key, self._world.key
        left = self._task.left(self._world)
        step = StepSeen(
            len(self.steps) + 1, len(self.turns), kind, name, arguments, text, changed, learned, left, detail[:EXCERPT]
        )
        self.steps.append(step)


def _forbidden(move: Move) -> bool:
    """A call of a forbidden tool that fits its schema: judged before anything else of its turn."""
    return move.name in TRAPS and move.arguments is not None and problem_with(move.name, move.arguments) is None


def _without_call(text: str, *, foreign: bool, broken: bool) -> Label:
    if not any(map(str.isalnum, text)):
        return "EmptyOutput"
    return "ForeignDialect" if foreign else "MalformedJson" if broken else "Hallucinated"
