"""OpenAI's Responses, beyond what the golden files show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import Cut, EmptyRecord, Failed, Finished, Malformed, Nanoseconds, TextDelta, ThinkingDelta, ToolCall, Usage
from qm_proxy.wire.openai_responses import ResponsesAnswer, ResponsesWhole
from qm_proxy.wire.replies import OpenItem
from tests.qm_proxy.wire.answers import every, names, only, run, sse


def event(kind: str, **fields: Any) -> bytes:
    return sse({**fields, "type": kind}, kind)


def response(**fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "model": "m", "created_at": 7, **fields}


CREATED = event("response.created", response=response(status="in_progress"), sequence_number=0)
COMPLETED = event("response.completed", response=response(status="completed", usage={"input_tokens": 3, "output_tokens": 2}))
CALL = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": ""}


def test_text_thinking_refusal() -> None:
    body = [
        event("response.reasoning_text.delta", delta="hm"),
        event("response.reasoning_summary_text.delta", delta="hm"),
        event("response.output_text.delta", delta="hi"),
        event("response.refusal.delta", delta="no"),
        event("response.output_text.delta", delta=""),
        event("response.output_text.done", text="hi"),
    ]
    events = run(ResponsesAnswer(), CREATED, *body, COMPLETED)
    assert names(events) == [
        "Began",
        "ThinkingDelta",
        "ThinkingDelta",
        "TextDelta",
        "TextDelta",
        "EmptyRecord",
        "Usage",
        "Finished",
    ]


def test_28_cached_tokens_of_zero_are_unknown() -> None:
    usage = {"input_tokens": 3, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 0}}
    found = only(run(ResponsesAnswer(), event("response.completed", response=response(usage=usage))), Usage)
    assert (found.input_tokens, found.output_tokens, found.cached_tokens) == (3, 2, None)


def test_23_ends() -> None:
    assert (
        only(run(ResponsesAnswer(), CREATED, event("response.output_text.delta", delta="a")), Cut).ending == "upstream_truncated"
    )
    incomplete = event(
        "response.incomplete", response=response(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    )
    assert only(run(ResponsesAnswer(), CREATED, incomplete), Finished).reason == "max_output_tokens"
    assert only(run(ResponsesAnswer(), CREATED, event("response.completed")), Finished).reason is None
    failed = event("response.failed", response=response(error={"code": "x", "message": "no"}, usage={"input_tokens": 3}))
    events = run(ResponsesAnswer(), CREATED, failed)
    assert names(events) == ["Began", "Usage", "Failed", "Cut"]
    assert only(run(ResponsesAnswer(), event("response.failed")), Failed).message == ""


def test_a_call_by_its_done_item_alone() -> None:
    events = run(ResponsesAnswer(), CREATED, event("response.output_item.done", item={**CALL, "arguments": '{"a":1}'}), COMPLETED)
    assert only(events, ToolCall) == ToolCall(Nanoseconds(2), 0, "call_1", "f", '{"a":1}')


def test_a_call_that_is_never_done_is_whole_with_the_response() -> None:
    body = event("response.output_item.added", item=CALL, output_index=0)
    body += event("response.function_call_arguments.delta", item_id="fc_1", delta='{"a":1}')
    body += event("response.function_call_arguments.delta", item_id="fc_1", delta="")
    events = run(ResponsesAnswer(), CREATED, body, COMPLETED)
    assert only(events, ToolCall).arguments == '{"a":1}'
    assert len(every(events, EmptyRecord)) == 1
    assert not every(run(ResponsesAnswer(), CREATED, body), ToolCall)


def test_calls_without_item_ids_go_by_their_place() -> None:
    item = {key: value for key, value in CALL.items() if key != "id"}
    body = event("response.output_item.added", item=item, output_index=3)
    body += event("response.function_call_arguments.delta", output_index=3, delta="{}")
    body += event("response.output_item.done", item={**item, "arguments": "{}"}, output_index=3)
    assert only(run(ResponsesAnswer(), CREATED, body, COMPLETED), ToolCall).name == "f"


def test_a_call_without_any_arguments() -> None:
    item = {"id": "x", "type": "web_search_call"}
    events = run(ResponsesAnswer(), CREATED, event("response.output_item.done", item=item), COMPLETED)
    assert (only(events, ToolCall).name, only(events, ToolCall).arguments) == ("web_search", "{}")


def test_an_item_that_is_no_call_and_an_empty_done() -> None:
    body = event("response.output_item.done", item={"type": "message"}) + event("response.output_item.done")
    assert names(run(ResponsesAnswer(), CREATED, body, COMPLETED)) == ["Began", "Usage", "Finished"]


def test_an_answer_that_only_the_final_response_shows() -> None:
    output = [
        {"type": "reasoning", "content": [{"text": "hm"}, {"text": ""}]},
        {"type": "message", "content": [{"text": "hi"}, {"refusal": "no"}, {"type": "x"}]},
        {"type": "mcp_call", "id": "m1", "name": "g", "arguments": "{}"},
        {"type": "local_shell_call", "id": "l1", "action": {"command": ["ls"]}},
    ]
    events = run(ResponsesAnswer(), event("response.completed", response=response(output=output)))
    assert names(events) == ["Began", "ThinkingDelta", "TextDelta", "TextDelta", "ToolCall", "ToolCall", "Finished"]
    assert [(c.call_id, c.name, c.arguments) for c in every(events, ToolCall)] == [
        ("m1", "g", "{}"),
        ("l1", "local_shell", '{"command":["ls"]}'),
    ]
    told = run(
        ResponsesAnswer(),
        event("response.output_text.delta", delta="hi"),
        event("response.completed", response=response(output=output)),
    )
    assert len(every(told, TextDelta)) == 1
    odd = event("response.completed", response=response(output=[1]))
    assert names(run(ResponsesAnswer(), odd)) == ["Began", "Finished"]


@pytest.mark.parametrize(
    "record", [event("error", message="no", code="x"), sse({"error": {"message": "no"}}), sse({"message": "no"}, "error")]
)
def test_errors(record: bytes) -> None:
    events = run(ResponsesAnswer(), CREATED, record)
    assert only(events, Failed).message == "no"


def test_39_unknown_events_and_malformed_ones() -> None:
    body = event("response.web_search_call.searching") + event("response.new.thing") + b"data: {]\n\n" + b"data: [DONE]\n\n"
    body += b'data: {"type":"response.output_text.delta","delta":"a","logprobs":NaN}\n\n'
    events = run(ResponsesAnswer(), CREATED, body, COMPLETED)
    assert names(events) == ["Began", "EmptyRecord", "EmptyRecord", "Malformed", "TextDelta", "Usage", "Finished"]


def test_standing_knows_the_open_item_and_the_next_number() -> None:
    decoder = ResponsesAnswer()
    decoder.feed(
        CREATED + event("response.output_item.added", item={"id": "msg_1", "type": "message"}, output_index=1, sequence_number=4),
        Nanoseconds(1),
    )
    standing = decoder.standing()
    assert (standing.response_id, standing.model, standing.created, standing.sequence) == ("resp_1", "m", 7, 5)
    assert standing.open == [OpenItem("text", 1, "msg_1")]
    decoder.feed(event("response.output_item.added", item={"id": "rs", "type": "reasoning"}), Nanoseconds(1))
    assert decoder.standing().open == [OpenItem("thinking", 0, "rs")]
    decoder.feed(event("response.output_item.done", item={"type": "reasoning"}), Nanoseconds(1))
    assert decoder.standing().open == []


def test_whole_answers() -> None:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}, {**CALL, "arguments": "{}"}]
    body = json.dumps(response(status="completed", output=output, usage={"input_tokens": 3, "output_tokens": 2})).encode()
    assert names(run(ResponsesWhole(), body)) == ["Began", "TextDelta", "ToolCall", "Usage", "Finished"]
    assert only(run(ResponsesWhole(), json.dumps(response(error={"message": "no"})).encode()), Failed).message == "no"
    assert names(run(ResponsesWhole(), json.dumps(response(status="failed")).encode())) == ["Failed", "Cut"]
    assert names(run(ResponsesWhole(), json.dumps(response()).encode())) == ["Began", "Cut"]
    assert names(run(ResponsesWhole(), b"[")) == ["Malformed", "Cut"]
    assert only(run(ResponsesWhole(), b'{"status":"completed","x":NaN}'), Finished).reason == "completed"
    thought = json.dumps(response(status="completed", output=[{"type": "reasoning", "summary": [{"text": "hm"}]}])).encode()
    assert only(run(ResponsesWhole(), thought), ThinkingDelta).text == "hm"


_PIECES = st.sampled_from(
    [CREATED, COMPLETED, event("response.output_item.added", item=CALL), event("response.output_text.delta", delta=1), b"data: {"]
)


@settings(max_examples=120)
@given(st.lists(_PIECES | st.binary(max_size=40), max_size=12), st.booleans())
def test_never_raises_and_ends_exactly_once(pieces: list[bytes], streamed: bool) -> None:
    events = run(ResponsesAnswer() if streamed else ResponsesWhole(), *pieces)
    assert len(every(events, Finished)) + len(every(events, Cut)) == 1
    assert all(len(found.evidence) <= 80 for found in every(events, Malformed))
