"""Content leaves only when asked for, redacted and cut."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.events import Asked, Message, Nanoseconds, PastCall
from qm_proxy.record import Opened, Record, ToolCallSeen
from qm_proxy.telemetry.content import CAPTURE_VARIABLE, TEXT_MAX, WHOLE_MAX, as_json, asking, content


def hide(text: str) -> str:
    return text.replace("secret", "[redacted]")


def opened(*messages: Message) -> Opened:
    asked = Asked(Nanoseconds(0), "ollama", "chat", "m", True, messages=messages)
    return Opened(
        id="x",
        t_ns=Nanoseconds(0),
        started_at="2026-11-24T10:00:00Z",
        method="POST",
        route="/api/chat",
        dialect="ollama",
        operation="chat",
        model="m",
        streamed=True,
        client="aider",
        user_agent=None,
        origin="client",
        asked=asked,
    )


def record(*messages: Message, **changed: Any) -> Record:
    spec = importlib.util.spec_from_file_location("metrics_tests", Path(__file__).with_name("test_metrics.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Record = module.record(opened=opened(*messages), **changed)
    return made


def test_nothing_captured_is_nothing_told() -> None:
    assert content(record(Message("user", "hi")), hide) == {}


@pytest.mark.parametrize(
    ("word", "emit", "asked"),
    [
        ("", "", (False, False, False)),
        ("NO_CONTENT", "", (False, False, False)),
        ("everything", "", (False, False, False)),
        ("SPAN_ONLY", "", (True, False, False)),
        ("true", "", (True, False, False)),
        ("event_only", "", (False, True, True)),
        ("SPAN_AND_EVENT", "", (True, True, True)),
        ("SPAN_AND_EVENT", "false", (True, False, False)),
        ("EVENT_ONLY", "false", (False, False, False)),
        ("NO_CONTENT", "true", (False, False, True)),
        ("SPAN_ONLY", "true", (True, False, True)),
        ("EVENT_ONLY", "perhaps", (False, True, True)),
    ],
)
def test_the_variables_ask(monkeypatch: pytest.MonkeyPatch, word: str, emit: str, asked: tuple[bool, bool, bool]) -> None:
    """(messages on spans, messages on events, events at all)"""
    monkeypatch.setenv(CAPTURE_VARIABLE, word)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT", emit)
    assert asking() == asked


def test_messages_have_the_conventions_shape_and_no_secrets() -> None:
    call = ToolCallSeen("c2", "bash", 0.2, 10)
    told = content(
        record(
            Message("system", "the secret rules"),
            Message("user", "the secret", media=("ab",)),
            Message("assistant", "", thinking="secret thought", calls=(PastCall("c1", "read", '{"k":"secret"}'),)),
            Message("tool", "secret result", call_id="c1"),
            captured_request="{}",
            captured_answer="the secret answer",
            captured_thinking="hm",
            finish_reason="stop",
            tool_calls=[call],
            captured_calls=['{"command":"echo secret"}'],
        ),
        hide,
    )
    assert "secret" not in json.dumps(told)
    assert told["system_instructions"] == [{"type": "text", "content": "the [redacted] rules"}]
    user, assistant, tool = told["input_messages"]
    assert user == {
        "role": "user",
        "parts": [{"type": "text", "content": "the [redacted]"}, {"type": "file", "file_id": "sha256:ab"}],
    }
    assert [part["type"] for part in assistant["parts"]] == ["reasoning", "tool_call"]
    assert tool["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "[redacted] result"}]
    (said,) = told["output_messages"]
    assert said["finish_reason"] == "stop"
    assert [part["type"] for part in said["parts"]] == ["reasoning", "text", "tool_call"]
    assert said["parts"][2] == {"type": "tool_call", "id": "c2", "name": "bash", "arguments": '{"command":"echo [redacted]"}'}
    assert {key: json.loads(text) for key, text in as_json(told).items()} == told


def test_long_texts_and_histories_are_cut() -> None:
    many = [Message("user", f"{n} " + "x" * TEXT_MAX * 2) for n in range(100)]
    told = content(record(*many, captured_request="{}", captured_answer="", tool_calls=[]), hide)
    kept = told["input_messages"]
    assert len(as_json(told)["input_messages"]) <= WHOLE_MAX + 2
    assert 0 < len(kept) < 100
    assert kept[-1]["parts"][0]["content"].startswith("99 ")
    assert "output_messages" not in told
