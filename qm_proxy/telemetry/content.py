"""Prompts and answers as the conventions write them, for those who want them in their traces or logs: off unless asked for.

Rules that hold here:

- Content leaves only where the standard variable `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` says so: `SPAN_ONLY` (also
  `true`, the older word), `EVENT_ONLY` or `SPAN_AND_EVENT`. Any other word, and none, is no content. What is stored is another
  question (`--capture-content`). `OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT` says by itself whether there is an event.
- Every text goes through `redact` first. Media are told by their digest, never sent.
- A text is cut at `TEXT_MAX` characters; of a long history the newest messages that fit `WHOLE_MAX` are kept.
- A message is `{role, parts: [{type, content}]}`, the shape of the GenAI conventions: on spans as JSON text, which every backend
  takes; on events structured, which the conventions demand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from qm_proxy.events import Message
from qm_proxy.record import Record

__all__ = ["CAPTURE_VARIABLE", "Asking", "Redact", "as_json", "asking", "content"]

Redact = Callable[[str], str]
CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
TEXT_MAX = 16_384
WHOLE_MAX = 262_144


class Asking(NamedTuple):
    """What the environment asks for: messages on spans, messages on events, and the event at all."""

    on_spans: bool
    on_events: bool
    events: bool


def asking() -> Asking:
    """The two standard variables, read now. A word that is none of the four asks for nothing."""
    word = os.environ.get(CAPTURE_VARIABLE, "").strip().lower()
    on_spans = word in ("span_only", "span_and_event", "true")
    on_events = word in ("event_only", "span_and_event")
    emit = os.environ.get("OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT", "").strip().lower()
    events = {"true": True, "false": False}.get(emit, on_events)
    return Asking(on_spans, on_events and events, events)


def content(record: Record, redact: Redact) -> dict[str, list[dict[str, Any]]]:
    """`system_instructions`, `input_messages`, `output_messages`, each where there is one; nothing where nothing was captured."""
    if record.captured_request is None and record.captured_answer is None:
        return {}
    asked = record.opened.asked if record.opened else None
    past = asked.messages if asked else ()
    told = [message for message in past if message.role in ("system", "developer")]
    rest = [message for message in past if message.role not in ("system", "developer")]
    found = {
        "system_instructions": [{"type": "text", "content": _cut(redact(message.text))} for message in told],
        "input_messages": _newest([_message(message, redact) for message in rest]),
        "output_messages": _answer(record, redact),
    }
    return {key: messages for key, messages in found.items() if messages}


def as_json(told: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """The same as JSON text, for spans."""
    return {key: _json(messages) for key, messages in told.items()}


def _answer(record: Record, redact: Redact) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if record.captured_thinking:
        parts.append({"type": "reasoning", "content": _cut(redact(record.captured_thinking))})
    if record.captured_answer:
        parts.append({"type": "text", "content": _cut(redact(record.captured_answer))})
    arguments = record.captured_calls
    for index, call in enumerate(record.tool_calls):
        part = {"type": "tool_call", "id": call.id or None, "name": call.name}
        parts.append(part | {"arguments": _cut(redact(arguments[index]))} if index < len(arguments) else part)
    return [{"role": "assistant", "parts": parts, "finish_reason": record.finish_reason or "error"}] if parts else []


def _message(message: Message, redact: Redact) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if message.role == "tool":
        parts.append({"type": "tool_call_response", "id": message.call_id or None, "response": _cut(redact(message.text))})
    else:
        if message.thinking:
            parts.append({"type": "reasoning", "content": _cut(redact(message.thinking))})
        if message.text:
            parts.append({"type": "text", "content": _cut(redact(message.text))})
    for call in message.calls:
        arguments = _cut(redact(call.arguments))
        parts.append({"type": "tool_call", "id": call.call_id or None, "name": call.name, "arguments": arguments})
    parts += [{"type": "file", "file_id": f"sha256:{digest}"} for digest in message.media]
    return {"role": message.role, "parts": parts}


def _newest(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last messages that fit, measured as JSON: at least one."""
    kept: list[dict[str, Any]] = []
    left = WHOLE_MAX
    for message in reversed(messages):
        left -= len(_json(message)) + 1
        if left < 0 and kept:
            break
        kept.append(message)
    return kept[::-1]


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + f"… [{len(text) - TEXT_MAX} characters cut]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
