"""Runs of the origin's sampling, told as our own are: a line for each, any of them step by step, from recorded answers too.

A step of the walk is a call, so that it reads as every other replay; what the origin counts, the model's turns, stands beside.
What "the oracle would" have done is the fixed task's own way: the call it asks for, or what the oracle makes of its text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from probes.agent.compat import TURNS, CompatRun, CompatTally, K, Task, play_compat, tasks
from probes.agent.dialogue import Conduct, window_bound
from probes.agent.generator import GENERATOR_VERSION
from probes.agent.oracle import Oracle
from probes.agent.replay import spoken_turns, walked_steps
from probes.agent.world import World
from probes.ask import Answer, Ask
from probes.result import CompatSection
from qm_proxy.errors import SettingsError

__all__ = ["compat_kept", "compat_key", "compat_replay", "walk_compat"]


def compat_replay(run: CompatRun, path: str) -> dict[str, Any]:
    """The run as JSON values, in the form of `replay`; `sampling` says in words what kind of run it is."""
    task, tier = _task(run.task), run.tier
    start, best = task.left(World(task.instance)), min((step.distance for step in run.steps), default=None)
    best = start if best is None else min(start, best)
    return {
        "run": run.key,
        "sampling": (
            f"By the origin's sampling (--compat quantamind): repeat {run.repeat + 1} of {K[tier]} of one fixed task. A step of "
            f"the origin is a model turn, of which it took {run.turns} of at most {TURNS[tier]}; there is no done, the run ends "
            "when the goal is reached."
        ),
        "counts": "turns",
        "instance": f"{task.id}/{GENERATOR_VERSION}",
        "tier": tier,
        "path": path,
        "task": task.instance.task,
        "horizon": TURNS[tier],
        "oracle_steps": _shortest(task.id),
        "start_calls_left": start,
        "outcome": _outcome(run),
        "sub": None,
        "why": run.why,
        "evidence_steps": list(run.evidence),
        "progress": round((start - best) / start, 3),
        "progress_stopped_at": _stopped_at(run, start),
        "damage": [],
        "went_on_after_loop": False,
        "recovered": None,
        "steps": walked_steps(run.steps, task.instance.task, set(run.evidence), task.asks),
        "turns": spoken_turns(run.said),
    }


def compat_kept(section: CompatSection, tally: CompatTally) -> None:
    """Put into the section: every run in a line, how they were made, and step by step the first of each outcome of a tier."""
    if (conduct := tally.conduct) is None or not tally.runs:
        return
    tiers = dict.fromkeys(run.tier for run in tally.runs)
    section.conduct = {
        "generator_version": GENERATOR_VERSION,
        "path": conduct.path,
        "thinking": conduct.think,
        "temperature": conduct.temperature,
        "turn_tokens": conduct.turn_tokens,
        "thinking_tokens": conduct.thinking_tokens if conduct.think else 0,
        "window_tokens": {name: conduct.window_tokens or window_bound(tasks(name)[0].instance.tier, conduct) for name in tiers},
    }
    seen: set[tuple[str, str]] = set()
    for run in tally.runs:
        start = _task(run.task).left(World(_task(run.task).instance))
        best = min((step.distance for step in run.steps), default=start)
        section.runs.append(
            {
                "run": run.key,
                "tier": run.tier,
                "outcome": _outcome(run),
                "why": run.why,
                "evidence_steps": list(run.evidence),
                "turns": run.turns,
                "calls": sum(bool(step.name) for step in run.steps),
                "oracle_steps": _shortest(run.task),
                "progress": round((start - min(start, best)) / start, 3),
                "stopped_at": _stopped_at(run, start),
                "output_tokens": run.output_tokens,
                "same_as": next((f"compat/{run.task}/{n}" for n in _earlier(tally, run)), None),
            }
        )
        if (kind := (run.tier, _outcome(run))) not in seen:
            seen.add(kind)
            section.replays.append(compat_replay(run, conduct.path))


def compat_key(section: CompatSection, name: str) -> str | None:
    """The key of the run that a reader means by `compat/hard-2/7`, or `hard-2/7`; `None` when there is none."""
    keys = [str(run["run"]) for run in section.runs]
    return next((key for key in (name, f"compat/{name}") if key in keys), None)


def walk_compat(section: CompatSection, model: str, key: str, recall: Callable[[Ask], Answer | None] | None) -> dict[str, Any]:
    """The replay of that run: from the recorded answers, or as the result keeps it. Raises SettingsError when neither can."""
    how = section.conduct
    if recall is None or how.get("generator_version") != GENERATOR_VERSION:
        if (kept := next((shown for shown in section.replays if shown["run"] == key), None)) is not None:
            return kept
        why = "its answers were not recorded" if recall is None else f"it was made by {how.get('generator_version')}"
        raise SettingsError(
            f"{key} cannot be walked: {why}.", remedy="Make reports with --out FOLDER, and walk them with the same version."
        )
    _, task_id, repeat = key.split("/")
    task = _task(task_id)
    conduct = Conduct(
        model=model,
        path="native" if how["path"] == "native" else "prompt-json",
        think=how["thinking"],
        window_tokens=how["window_tokens"][task.tier],
        turn_tokens=how["turn_tokens"],
        thinking_tokens=how["thinking_tokens"],
        temperature=how["temperature"],
    )
    playing = play_compat(task, conduct, int(repeat))
    try:
        ask = next(playing)
        while True:
            if (answer := recall(ask)) is None:
                raise SettingsError(
                    f"The answer to {ask.key} is not among the recorded ones: rows.jsonl is of another run.",
                    remedy="Name the folder that --out wrote.",
                )
            ask = playing.send(answer)
    except StopIteration as concluded:
        return compat_replay(concluded.value, conduct.path)


def _task(task_id: str) -> Task:
    return next(task for task in tasks(task_id.partition("-")[0]) if task.id == task_id)


@cache
def _shortest(task_id: str) -> int:
    """Calls that the task's own way takes, waiting and retries included."""
    task = _task(task_id)
    world, oracle = World(task.instance), Oracle(task.instance.task)
    while not task.reached(world):
        name, arguments = task.asks or oracle.next()
        oracle.see(name, arguments, world.act(name, arguments).text)
    return world.steps


def _outcome(run: CompatRun) -> str:
    return "SKIPPED" if run.skipped else "PASS" if run.passed else str(run.label)


def _stopped_at(run: CompatRun, start: int) -> int | None:
    """The last step after which the way to the goal got shorter; `None` when it never did."""
    best, last = start, None
    for step in run.steps:
        if step.distance < best:
            best, last = step.distance, step.n
    return last


def _earlier(tally: CompatTally, run: CompatRun) -> list[int]:
    """Repeats of the same task before this one that went word for word the same way."""
    return [
        other.repeat
        for other in tally.runs
        if other.task == run.task and other.repeat < run.repeat and (other.label, other.trace) == (run.label, run.trace)
    ]
