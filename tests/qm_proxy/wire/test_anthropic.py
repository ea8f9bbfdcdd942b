"""Anthropic's messages, beyond what the golden files show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import Began, Cut, EmptyRecord, Failed, Finished, Nanoseconds, TextDelta, ThinkingDelta, ToolCall, Usage
from qm_proxy.wire.anthropic import AnthropicAnswer, AnthropicWhole
from qm_proxy.wire.framing import MAX_RECORD
from qm_proxy.wire.replies import OpenItem
from tests.qm_proxy.wire.answers import every, names, only, run, sse


def event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def start(**usage: Any) -> bytes:
    return event("message_start", message={"id": "msg_1", "model": "m", "usage": usage})


def block(kind: str, index: int = 0, **fields: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(kind: str, index: int = 0, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def stop(index: int = 0) -> bytes:
    return event("content_block_stop", index=index)


END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}) + event("message_stop")


def test_31_the_input_tokens_of_message_start_are_an_estimate() -> None:
    events = run(AnthropicAnswer(), start(input_tokens=57, output_tokens=0), END)
    first, last = every(events, Usage)
    assert (first.input_tokens, first.output_tokens, first.estimated) == (57, None, True)
    assert (last.input_tokens, last.output_tokens, last.estimated) == (None, 5, False)


def test_31_unless_the_server_accounts_for_its_cache() -> None:
    first = every(run(AnthropicAnswer(), start(input_tokens=5, cache_read_input_tokens=0, cache_creation_input_tokens=7)), Usage)[
        0
    ]
    assert (first.input_tokens, first.cached_tokens, first.estimated) == (12, 0, False)


def test_28_no_usage_of_zeros() -> None:
    events = run(
        AnthropicAnswer(), start(input_tokens=0, output_tokens=0), event("message_delta", usage={"input_tokens": 0}), END
    )
    assert [usage.output_tokens for usage in every(events, Usage)] == [5]


def test_23_ends() -> None:
    assert only(run(AnthropicAnswer(), start(), delta("text_delta", text="a")), Cut).ending == "upstream_truncated"
    without_stop = run(AnthropicAnswer(), start(), event("message_delta", delta={"stop_reason": "end_turn"}))
    assert only(without_stop, Finished).reason == "end_turn"
    torn = run(AnthropicAnswer(), start(), event("message_delta", delta={"stop_reason": "end_turn"}), ending="upstream_truncated")
    assert only(torn, Cut).ending == "upstream_truncated"


def test_a_call_whose_block_begins_with_its_input() -> None:
    body = block("tool_use", id="t1", name="f", input={"a": 1}) + stop() + block("tool_use", 1, id="t2", name="g") + stop(1)
    calls = every(run(AnthropicAnswer(), start(), body, END), ToolCall)
    assert [(c.call_id, c.arguments, c.whole) for c in calls] == [("t1", '{"a": 1}', True), ("t2", "{}", True)]


def test_deltas_count_more_than_the_blocks_own_input() -> None:
    body = block("tool_use", id="t1", name="f", input={"a": 1}) + delta("input_json_delta", partial_json='{"b":2}') + stop()
    assert only(run(AnthropicAnswer(), start(), body, END), ToolCall).arguments == '{"b":2}'


def test_a_call_whose_block_never_stops_is_whole_with_the_message() -> None:
    body = block("tool_use", id="t1", name="f") + delta("input_json_delta", partial_json='{"b":2}')
    assert only(run(AnthropicAnswer(), start(), body, END), ToolCall).arguments == '{"b":2}'
    assert not every(run(AnthropicAnswer(), start(), body), ToolCall)


def test_text_and_thinking_that_a_block_begins_with() -> None:
    events = run(AnthropicAnswer(), start(), block("thinking", thinking="hm"), stop(), block("text", 1, text="hi"), stop(1), END)
    assert only(events, ThinkingDelta).text == "hm"
    assert only(events, TextDelta).text == "hi"


def test_39_pings_signatures_and_what_is_not_known_are_empty() -> None:
    body = (
        event("ping")
        + delta("signature_delta", signature="x")
        + delta("new_delta", new=1)
        + event("content_block_delta")
        + event("new_event")
    )
    assert len(every(run(AnthropicAnswer(), start(), body, END), EmptyRecord)) == 5


def test_without_a_message_start_it_begins_with_the_first_block() -> None:
    assert only(run(AnthropicAnswer(), delta("text_delta", text="a"), END), Began).response_model is None
    assert names(run(AnthropicAnswer(), event("message_start"), END))[0] == "Began"


def test_the_events_name_serves_where_the_type_is_missing() -> None:
    events = run(
        AnthropicAnswer(), sse({"delta": {"type": "text_delta", "text": "a"}}, "content_block_delta"), sse({}, "message_stop")
    )
    assert names(events) == ["Began", "TextDelta", "Finished"]


@pytest.mark.parametrize(
    "record",
    [
        event("error", error={"type": "overloaded_error", "message": "busy"}),
        sse({"error": "busy"}),
        sse({"message": "busy"}, "error"),
    ],
)
def test_errors(record: bytes) -> None:
    events = run(AnthropicAnswer(), start(), record)
    assert only(events, Failed).message == "busy"
    assert only(events, Cut).ending == "upstream_error"


def test_malformed_and_foreign_ends() -> None:
    events = run(
        AnthropicAnswer(),
        start(),
        b"data: {]\n\n",
        b'data: {"index":"x"}\n\n',
        b'data: {"type":"ping","x":NaN}\n\n',
        END,
        b"data: [DONE]\n\n",
    )
    assert names(events) == ["Began", "Malformed", "Malformed", "EmptyRecord", "Usage", "Finished"]


def test_standing_knows_the_open_block() -> None:
    decoder = AnthropicAnswer()
    decoder.feed(start(output_tokens=1) + block("text", 2), Nanoseconds(1))
    assert decoder.standing().open == [OpenItem("text", 2)]
    assert decoder.standing().output_tokens == 1
    decoder.feed(stop(2) + block("thinking", 3), Nanoseconds(2))
    assert decoder.standing().open == [OpenItem("thinking", 3)]
    decoder.feed(stop(3) + block("tool_use", 4, id="t", name="f"), Nanoseconds(3))
    assert decoder.standing().open == [OpenItem("tool", 4)]


def whole(**fields: Any) -> bytes:
    return json.dumps({"type": "message", "id": "msg_1", "model": "m", **fields}).encode()


def test_a_whole_answer() -> None:
    content = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "hi"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "t2", "name": "g"},
        {"type": "redacted_thinking", "data": "x"},
    ]
    events = run(AnthropicWhole(), whole(content=content, stop_reason="tool_use", usage={"input_tokens": 3, "output_tokens": 2}))
    assert names(events) == ["Began", "ThinkingDelta", "TextDelta", "ToolCall", "ToolCall", "Usage", "Finished"]
    assert [call.arguments for call in every(events, ToolCall)] == ['{"a": 1}', "{}"]
    assert not only(events, Usage).estimated


def test_whole_answers_that_are_none() -> None:
    assert names(run(AnthropicWhole(), whole(content=None, stop_reason="end_turn", usage={"input_tokens": 0}))) == [
        "Began",
        "Finished",
    ]
    assert names(run(AnthropicWhole(), whole(content=[]))) == ["Began", "Cut"]
    assert only(run(AnthropicWhole(), b'{"type":"error","error":{"type":"x","message":"no"}}'), Failed).message == "no"
    assert names(run(AnthropicWhole(), b"{")) == ["Malformed", "Cut"]
    assert names(run(AnthropicWhole(), whole(stop_reason="end_turn")[:-1] + b',"x":NaN}')) == ["Began", "Finished"]
    assert names(run(AnthropicWhole(), b" " * (MAX_RECORD + 1))) == ["Malformed", "Cut"]


_PIECES = st.sampled_from(
    [
        start(input_tokens=1),
        block("text"),
        block("tool_use", id="t", name="f"),
        delta("input_json_delta", partial_json="{"),
        stop(),
        END,
    ]
)


@settings(max_examples=120)
@given(st.lists(_PIECES | st.binary(max_size=40), max_size=12), st.booleans())
def test_never_raises_and_ends_exactly_once(pieces: list[bytes], streamed: bool) -> None:
    events = run(AnthropicAnswer() if streamed else AnthropicWhole(), *pieces)
    assert len(every(events, Finished)) + len(every(events, Cut)) == 1
