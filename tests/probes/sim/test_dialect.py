"""What the captures do not show of the dialects: history read, mixed answers written."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from probes.sim import anthropic, native, openai, responses
from probes.sim.dialect import Ask, Metrics, Record
from probes.sim.speech import Call

METRICS = Metrics(9, 1, 20, 2, 7, 3)
CALL = Call("f", '{"a":"<b>"}', "call_1")


def events(flushes: list[bytes]) -> list[dict[str, Any]]:
    found = []
    for flush in flushes:
        for line in flush.decode().split("\n"):
            text = line.removeprefix("data: ")
            if text.startswith("{"):
                found.append(json.loads(text))
    return found


# --- history ------------------------------------------------------------------------------------------------------------


def told(ask: Ask) -> list[tuple[str, str, str, str]]:
    return [(m.role, m.content, m.tool_name, "".join(c.name + c.arguments for c in m.calls)) for m in ask.messages]


EXPECTED = [
    ("user", "w?", "", ""),
    ("assistant", "", "", 'get_weather{"city":"Paris"}'),
    ("tool", "22C", "get_weather", ""),
]


def test_one_call_and_its_result_in_each_dialect() -> None:
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    text_call = {**call, "arguments": '{"city":"Paris"}'}
    own = {
        "messages": [
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
            {"role": "tool", "tool_name": "get_weather", "content": "22C"},
        ]
    }
    chat = {
        "messages": [
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": text_call}]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "22C"}]},
        ]
    }
    items = {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "w?"}]},
            {"type": "function_call", "call_id": "c1", **text_call},
            {"type": "function_call_output", "call_id": "c1", "output": "22C"},
        ]
    }
    blocks = {
        "model": "m",
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": "w?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Paris"}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "22C"}]}],
            },
        ],
    }
    assert told(native.read_chat(own)) == EXPECTED
    assert told(openai.read_chat(chat)) == EXPECTED
    assert told(responses.read_responses(items)) == EXPECTED
    assert told(anthropic.read_messages(blocks)) == EXPECTED


def test_system_prompts_and_thoughts() -> None:
    body: Any = {
        "instructions": "sys",
        "input": [{"type": "reasoning", "encrypted_content": "hm"}, {"role": "assistant", "content": "x"}],
    }
    ask = responses.read_responses(body)
    assert [(m.role, m.content, m.thinking) for m in ask.messages] == [("system", "sys", ""), ("assistant", "x", "hm")]
    body = {
        "model": "m",
        "max_tokens": 1,
        "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        "messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]}],
    }
    ask = anthropic.read_messages(body)
    assert [(m.role, m.content, m.thinking) for m in ask.messages] == [("system", "ab", ""), ("assistant", "x", "hm")]


def test_tools_in_their_shapes() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    flat = responses.read_responses(
        {
            "input": "x",
            "tools": [
                {"type": "function", **function},
                {"type": "namespace", "name": "ns", "tools": [{"type": "function", **function}]},
                {"type": "web_search"},
            ],
        }
    )
    assert [t["function"]["name"] for t in flat.tools] == ["f", "ns.f"]
    own = anthropic.read_messages(
        {
            "model": "m",
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "x"}],
            "tools": [
                {"name": "f", "input_schema": {"type": "object"}},
                {"type": "web_search_20250305", "name": "web_search"},
            ],
        }
    )
    assert [t["function"]["name"] for t in own.tools] == ["f"]


def test_images_are_counted() -> None:
    chat = openai.read_chat({"messages": [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "x"}]}]})
    assert (chat.messages[0].content, chat.messages[0].images) == ("x", 1)
    own = native.read_chat({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]})
    assert own.messages[0].images == 1


# --- answers ------------------------------------------------------------------------------------------------------------


def ask(dialect: str, **more: Any) -> Ask:
    return Ask("chat", dialect, "m", True, **more)


def test_text_before_a_call_in_each_dialect() -> None:
    records = [Record(10**18, "one "), Record(10**18, calls=[CALL]), Record(10**18, done=True, reason="stop", metrics=METRICS)]
    chat = openai.ChatWriter(ask("openai-chat"), Random(1), usage=False)
    found = events([f for r in records for f in chat.record(r)])
    assert [e["choices"][0]["finish_reason"] for e in found] == [None, None, "tool_calls"]
    assert found[1]["choices"][0]["delta"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":"<b>"}'}
    assert "role" in found[0]["choices"][0]["delta"]
    assert "role" not in found[1]["choices"][0]["delta"]

    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    messages = anthropic.MessagesWriter(ask("anthropic"), body, Random(1))
    found = events([f for r in records for f in messages.record(r)])
    assert [e["type"] for e in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [e["index"] for e in found if "index" in e] == [0, 0, 0, 1, 1, 1]
    assert found[-2]["delta"]["stop_reason"] == "tool_use"

    writer = responses.ResponsesWriter(ask("openai-responses"), {}, Random(1))
    found = events([f for r in records for f in writer.record(r)])
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    final = found[-1]["response"]
    assert [(n, item["type"]) for n, item in enumerate(final["output"])] == [(0, "message"), (1, "function_call")]
    done = [e for e in found if e["type"] == "response.output_item.done"]
    assert [e["output_index"] for e in done] == [0, 1]


def test_length_wins_unless_there_is_a_call() -> None:
    for calls, reason in (([], "max_tokens"), ([CALL], "tool_use")):
        writer = anthropic.MessagesWriter(ask("anthropic"), {"messages": []}, Random(1))
        record = Record(1, "x", calls=calls, done=True, reason="length", metrics=METRICS)
        assert json.loads(writer.whole(record))["stop_reason"] == reason
    assert openai.finish_of("length", True) == '"length"'
    assert openai.finish_of("stop", True) == '"tool_calls"'


def test_whole_answers_with_everything() -> None:
    record = Record(10**18, "text", "thought", [CALL], True, "stop", METRICS)
    body = {
        "model": "m",
        "max_tokens": 5,
        "messages": [],
        "tools": [{"type": "function", "name": "f", "parameters": {"z": 1, "a": 2}}],
    }
    message = json.loads(anthropic.MessagesWriter(ask("anthropic"), {"messages": []}, Random(1)).whole(record))
    assert [b["type"] for b in message["content"]] == ["thinking", "text", "tool_use"]
    response = json.loads(responses.ResponsesWriter(ask("openai-responses"), body, Random(1)).whole(record))
    assert [i["type"] for i in response["output"]] == ["reasoning", "function_call"]  # calls leave the text out
    assert list(response["tools"][0]["parameters"]) == ["a", "z"]
    chat = json.loads(openai.ChatWriter(ask("openai-chat"), Random(1), usage=False).whole(record))
    assert chat["choices"][0]["message"]["reasoning"] == "thought"
    own = json.loads(native.NativeWriter(ask("ollama"), Random(1)).whole(record))
    assert own["message"]["tool_calls"][0]["function"]["arguments"] == {"a": "<b>"}


def test_arguments_that_are_no_object_stay_text() -> None:
    broken = Call("f", '{"a":', "call_2")
    own = native.NativeWriter(ask("ollama"), Random(1)).record(Record(1, calls=[broken]))
    assert json.loads(own[0])["message"]["tool_calls"][0]["function"]["arguments"] == '{"a":'
    chat = openai.ChatWriter(ask("openai-chat"), Random(1), usage=False).record(Record(1, calls=[broken]))
    assert events(chat)[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == '{"a":'
