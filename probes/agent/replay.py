"""Walk through any run: what the model did, what the world said, what the oracle would have done, where progress stopped.

`replay` gives plain JSON values (the result file and HTML use them), `terminal` the same as lines of text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from textwrap import wrap
from typing import Any, Final

from probes.agent.oracle import Call, Oracle
from probes.agent.taxonomy import Outcome, judge
from probes.agent.trace import Played, StepSeen, TurnSeen

__all__ = ["replay", "spoken_turns", "stopped_at", "terminal", "walked_steps"]

_LONGEST: Final = 400
_ROWS: Final = 6
"""Lines of one answer, and of one long line, that the terminal shows."""


def stopped_at(run: Played) -> int | None:
    """The last step after which the way to the goal got shorter; `None` when it never did."""
    best, last = run.start_distance, None
    for step in run.judged:
        if step.distance < best:
            best, last = step.distance, step.n
    return last


def replay(run: Played, outcome: Outcome | None = None) -> dict[str, Any]:
    """The run as JSON values. `oracle` of a step is what the oracle would have called, knowing all that was shown till then."""
    outcome = outcome or judge(run)
    instance = run.instance
    return {
        "run": run.key,
        "instance": instance.name,
        "tier": instance.tier.name,
        "path": run.path,
        "task": instance.task,
        "horizon": instance.horizon,
        "oracle_steps": instance.oracle_steps,
        "start_calls_left": run.start_distance,
        "outcome": "PASS" if outcome.passed else outcome.label,
        "sub": outcome.sub,
        "why": outcome.why,
        "evidence_steps": list(outcome.steps),
        "progress": round(run.progress, 3),
        "progress_stopped_at": stopped_at(run),
        "damage": list(run.damage),
        "went_on_after_loop": run.went_on,
        "recovered": run.recovered,
        "steps": walked_steps(run.steps, instance.task, set(outcome.steps)),
        "turns": spoken_turns(run.turns),
    }


def walked_steps(
    steps: Sequence[StepSeen], task: str, evidence: Collection[int], asked: Call | None = None
) -> list[dict[str, Any]]:
    """Each step with what the oracle would have called then. `asked`: the one call that the task wants, whatever was seen."""
    oracle = Oracle(task)
    walked: list[dict[str, Any]] = []
    for step in steps:
        would = asked or oracle.next()
        same = would.name == step.name and would.arguments == _plain(step)
        ended = would.name == "done" and step.kind == "done"
        walked.append(
            {
                "step": step.n,
                "turn": step.turn,
                "kind": step.kind,
                "call": step.name,
                "arguments": _short(step.arguments),
                "answer": step.answer[:_LONGEST],
                "changed": step.changed,
                "learned": list(step.learned),
                "calls_left": step.distance,
                "oracle": None if same or ended else {"call": would.name, "arguments": would.arguments},
                "as_oracle": same,
                "evidence": step.n in evidence,
                "detail": step.detail[:_LONGEST],
            }
        )
        oracle.see(step.name, step.arguments, step.answer)
    return walked


def spoken_turns(turns: Sequence[TurnSeen]) -> list[dict[str, Any]]:
    """What the model said in each turn, and what it cost."""
    return [
        {
            "turn": turn.n,
            "text": turn.text,
            "calls": turn.calls,
            "input_tokens": turn.input_tokens,
            "output_tokens": turn.output_tokens,
            "seconds": round(turn.seconds, 3),
        }
        for turn in turns
    ]


def terminal(shown: dict[str, Any], width: int = 120) -> str:
    """A replay as text: one block a step, marks at the evidence and where progress stopped."""
    lines = [
        f"{shown['instance']} ({shown['path']}): {shown['outcome']}" + (f" / {shown['sub']}" if shown["sub"] else ""),
        *wrap(shown.get("sampling") or "", width, initial_indent="  ", subsequent_indent="  "),
        *(part for line in shown["task"].splitlines() for part in wrap(f"  {line}", width, subsequent_indent="  ")),
        f"  horizon {shown['horizon']} {shown.get('counts', 'steps')}, the oracle's calls {shown['oracle_steps']}, "
        f"progress {100 * shown['progress']:.0f} %",
        "",
    ]
    said = {turn["turn"]: turn["text"].strip() for turn in shown["turns"]}
    if shown["steps"] and shown["progress_stopped_at"] is None and shown["outcome"] != "PASS":
        lines.append("      -- no step brought the goal nearer --")
    for index, step in enumerate(shown["steps"]):
        same = index and _alike(step, shown["steps"][index - 1]) and not step["evidence"]
        if same:
            after = shown["steps"][index + 1] if index + 1 < len(shown["steps"]) else None
            if after is None or not _alike(after, step) or after["evidence"]:
                lines.append(f"      … the same up to step {step['step']}")
            continue
        mark = ">>" if step["evidence"] else "  "
        if (words := said.pop(step["turn"], "")) and words != step["detail"]:
            lines += wrap(f"      the model says: {words}", width, subsequent_indent=" " * 9)[:_ROWS]
        call = step["call"] + " " + json.dumps(step["arguments"], ensure_ascii=False) if step["call"] else f"({step['kind']})"
        lines += wrap(f"{mark}{step['step']:3} {call}", width, subsequent_indent=" " * 6)[:_ROWS]
        answered = step["answer"].splitlines() if step["answer"] else [step["detail"]]
        for row, line in enumerate(answered[:_ROWS]):
            lines += wrap(line, width, initial_indent="      => " if not row else " " * 9, subsequent_indent=" " * 9)[:_ROWS]
        if len(answered) > _ROWS:
            lines.append(f"         … {len(answered) - _ROWS} more lines")
        if step["oracle"] is not None:
            would = f"{step['oracle']['call']} {json.dumps(step['oracle']['arguments'], ensure_ascii=False)}"
            lines += wrap(f"      the oracle would: {would}", width, subsequent_indent=" " * 9)[:_ROWS]
        if step["step"] == shown["progress_stopped_at"] and shown["outcome"] != "PASS":
            lines.append(f"      -- progress stopped here, {step['calls_left']} calls short --")
    if shown["why"]:
        lines += ["", *wrap(f"{shown['outcome']}: {shown['why']}", width, subsequent_indent="  ")]
    return "\n".join(lines)


def _plain(step: StepSeen) -> dict[str, str]:
    return {key: str(value) for key, value in step.arguments.items()}


def _short(arguments: dict[str, object]) -> dict[str, object]:
    shown: dict[str, object] = {}
    for key, value in arguments.items():
        text = str(value)
        shown[key] = value if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
    return shown


def _alike(step: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(step[key] == other[key] for key in ("call", "arguments", "answer", "kind"))
