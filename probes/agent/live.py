"""The same run as the detector of live traffic would have seen it: would it have spoken, and when?

The Agent Report proves a loop with the world's state at hand; a proxy has only calls and answers. Where both are asked the
same question, both answers are kept: how many proven loops the live rule finds, and how often it speaks in a run that passed.

The question is the same for a call that fails and for a cycle of several calls: both speak at the third copy. For one call that
succeeds the live rule, which sees no state, waits for a fourth copy; a loop that ends at the third is the proof's alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from probes.agent.trace import Played
from qm_proxy.detect.call_loop import CallLoops
from qm_proxy.events import Asked, Event, Finished, Message, Nanoseconds, PastCall, TextDelta, ToolCall
from qm_proxy.findings import Finding
from qm_proxy.record import Opened

__all__ = ["Alarm", "live_alarm"]

_T = Nanoseconds(0)


class Alarm(NamedTuple):
    """Where the live rule first called a run a loop: the step, the turn, the rule's form."""

    step: int
    turn: int
    form: str


def live_alarm(run: Played) -> Alarm | None:
    """Let the live detector see the run's requests and answers, one after the other; its first violation, if any."""
    loops = CallLoops()
    history: list[Message] = []
    turn = 0
    for message in run.messages:
        if message["role"] == "assistant":
            turn += 1
            for finding in _seen(loops, tuple(history), _answer(message)):
                if finding.severity == "violation":
                    steps = [step.n for step in run.steps if step.turn <= turn]
                    return Alarm(max(steps, default=0), turn, str(finding.evidence.get("form")))
        history.append(_message(message))
    return None


def _seen(loops: CallLoops, history: tuple[Message, ...], answer: Iterable[Event]) -> Iterable[Finding]:
    asked = Asked(_T, "ollama", "chat", "m", True, history)
    opened = Opened(
        id="",
        t_ns=_T,
        started_at="",
        method="POST",
        route="/api/chat",
        dialect="ollama",
        operation="chat",
        model="m",
        streamed=True,
        client="unknown",
        user_agent=None,
        origin="probe",
        asked=asked,
    )
    detector = loops.watch(opened)
    return [] if detector is None else [finding for event in answer for finding in detector.see(event)]


def _answer(message: dict[str, Any]) -> list[Event]:
    events: list[Event] = [TextDelta(_T, message["content"])] if message["content"] else []
    for index, call in enumerate(message.get("tool_calls") or ()):
        events.append(ToolCall(_T, index, "", call["function"]["name"], json.dumps(call["function"]["arguments"])))
    return [*events, Finished(_T, "stop")]


def _message(message: dict[str, Any]) -> Message:
    calls = tuple(
        PastCall(str(call.get("id") or ""), call["function"]["name"], json.dumps(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    )
    answers = str(message.get("tool_call_id") or "")
    failed = message["content"].startswith(("error", "refused")) if message["role"] == "tool" else None
    return Message(
        message["role"],
        message["content"],
        calls=calls,
        call_id=answers,
        tool_name=str(message.get("tool_name") or ""),
        is_error=failed,
    )
