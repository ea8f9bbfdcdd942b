"""Prompts and answers as the conventions write them, for those who want them in their traces: off unless asked for twice.

Rules that hold here:

- Content leaves only if the proxy captures it (`--capture-content`) *and* the standard variable
  `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` says `SPAN_ONLY` or `SPAN_AND_EVENT` (`true`: the older word for it).
- Every text goes through `redact` first. Media are told by their digest, never sent.
- A text is cut at `TEXT_MAX` characters; of a long history the newest messages that fit `WHOLE_MAX` are kept.
- JSON text, which every backend takes; a message is `{role, parts: [{type, content}]}`, the shape of the GenAI conventions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from qm_proxy.events import Message
from qm_proxy.record import Record

__all__ = ["Redact", "content", "content_wanted"]

Redact = Callable[[str], str]
TEXT_MAX = 16_384
WHOLE_MAX = 262_144


def content_wanted() -> bool:
    """Whether the environment asks for messages on spans."""
    word = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").strip().lower()
    return word in ("span_only", "span_and_event", "true")


def content(record: Record, redact: Redact) -> dict[str, str | None]:
    """Values of `system_instructions`, `input_messages`, `output_messages` (JSON); nothing where nothing was captured."""
    if record.captured_request is None and record.captured_answer is None:
        return {}
    asked = record.opened.asked if record.opened else None
    past = asked.messages if asked else ()
    told = [message for message in past if message.role in ("system", "developer")]
    rest = [message for message in past if message.role not in ("system", "developer")]
    answer: list[dict[str, Any]] = []
    if record.captured_thinking:
        answer.append({"type": "reasoning", "content": _cut(redact(record.captured_thinking))})
    if record.captured_answer:
        answer.append({"type": "text", "content": _cut(redact(record.captured_answer))})
    answer += [{"type": "tool_call", "id": call.id or None, "name": call.name} for call in record.tool_calls]
    said = {"role": "assistant", "parts": answer, "finish_reason": record.finish_reason or "error"}
    instructions = [{"type": "text", "content": _cut(redact(message.text))} for message in told]
    return {
        "system_instructions": _json(instructions) if instructions else None,
        "input_messages": _newest([_message(message, redact) for message in rest]) if rest else None,
        "output_messages": _json([said]) if answer else None,
    }


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


def _newest(messages: list[dict[str, Any]]) -> str:
    """The last messages that fit, as JSON: at least one."""
    kept: list[str] = []
    left = WHOLE_MAX
    for message in reversed(messages):
        text = _json(message)
        left -= len(text) + 1
        if left < 0 and kept:
            break
        kept.append(text)
    return f"[{','.join(reversed(kept))}]"


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + f"… [{len(text) - TEXT_MAX} characters cut]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
