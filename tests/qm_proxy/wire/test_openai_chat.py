"""OpenAI's chat completions and completions, beyond what the golden files show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import (
    Cut,
    EmptyRecord,
    Failed,
    Finished,
    Malformed,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolCall,
    Usage,
)
from qm_proxy.wire.framing import MAX_RECORD
from qm_proxy.wire.openai_chat import OpenAIAnswer, OpenAIWhole
from tests.qm_proxy.wire.answers import every, names, only, run, sse

DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    return sse(
        {"id": "c1", "model": "m", "created": 7, "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}
    )


def call(index: int | None = 0, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    function: dict[str, Any] = {}
    if name is not None:
        function["name"] = name
    if arguments is not None:
        function["arguments"] = arguments
    found: dict[str, Any] = {"function": function}
    if index is not None:
        found["index"] = index
    if call_id is not None:
        found["id"] = call_id
    return {"tool_calls": [found]}


def test_24_an_empty_model_inside_a_stream_is_an_error() -> None:
    events = run(OpenAIAnswer(), chunk({"content": "a"}), chunk({"content": ""}, model=""))
    assert names(events) == ["Began", "TextDelta", "Failed", "Cut"]
    assert only(events, Failed).message == ""
    assert only(events, Cut).ending == "upstream_error"


def test_24_a_server_that_never_names_its_model_is_none() -> None:
    events = run(
        OpenAIAnswer(), chunk({"content": "a"}, model=""), chunk({"content": "b"}, model=""), chunk(finish="stop", model=""), DONE
    )
    assert names(events) == ["Began", "TextDelta", "TextDelta", "Finished"]


def test_23_without_done_and_without_a_reason_it_was_cut() -> None:
    events = run(OpenAIAnswer(), chunk({"content": "a"}))
    assert only(events, Cut).ending == "upstream_truncated"


def test_a_reason_does_not_save_a_torn_connection() -> None:
    events = run(OpenAIAnswer(), chunk({"content": "a"}), chunk(finish="stop"), ending="upstream_truncated")
    assert only(events, Cut).ending == "upstream_truncated"


def test_30_running_usage_is_told_once_and_zeros_never() -> None:
    usage = [{"prompt_tokens": 5, "completion_tokens": n} for n in (0, 1, 2)]
    events = run(
        OpenAIAnswer(),
        chunk({"content": ""}, usage={"prompt_tokens": 0, "completion_tokens": 0}),
        *[chunk({"content": "a"}, usage=each) for each in usage],
        chunk(finish="stop"),
        DONE,
    )
    assert (only(events, Usage).input_tokens, only(events, Usage).output_tokens) == (5, 2)
    cut = run(OpenAIAnswer(), chunk({"content": "a"}, usage=usage[0]), ending="client_disconnect")
    assert only(cut, Usage).output_tokens == 0
    assert names(cut)[-2:] == ["Usage", "Cut"]


def test_a_role_announcement_and_a_finish_are_no_chunks() -> None:
    events = run(OpenAIAnswer(), chunk({"role": "assistant", "content": ""}), chunk({"content": "a"}), chunk({}, "stop"), DONE)
    assert names(events) == ["Began", "EmptyRecord", "TextDelta", "Finished"]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_under_both_names(field: str) -> None:
    assert only(run(OpenAIAnswer(), chunk({field: "hm"}), DONE), ThinkingDelta).text == "hm"


def test_the_same_thought_under_both_names_counts_once() -> None:
    assert len(every(run(OpenAIAnswer(), chunk({"reasoning": "hm", "reasoning_content": "hm"})), ThinkingDelta)) == 1


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_whole_call_in_one_chunk() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "c1", "f", '{"a": 1} ')), chunk(finish="tool_calls"), DONE)
    assert only(events, ToolCall) == ToolCall(Nanoseconds(1), 0, "c1", "f", '{"a": 1} ')


def test_33_calls_that_never_count_themselves() -> None:
    """Old Ollama and some parsers send index 0 for each."""
    events = run(
        OpenAIAnswer(), chunk(call(0, "c1", "f", "{}")), chunk(call(0, "c2", "g", "{}")), chunk(call(None, "", "h", "{}")), DONE
    )
    assert [(c.index, c.call_id, c.name) for c in every(events, ToolCall)] == [(0, "c1", "f"), (1, "c2", "g"), (2, "", "h")]


def test_pieces_with_another_id_are_another_call() -> None:
    events = run(
        OpenAIAnswer(), chunk(call(0, "c1", "f", '{"a"')), chunk(call(0, None, None, ":1}")),
        chunk(call(0, "c2", "g", '{"b"')), chunk(call(0, "c2", "g", ":2}")), chunk(finish="tool_calls"), DONE,
    )  # fmt: skip
    assert [(c.call_id, c.name, c.arguments) for c in every(events, ToolCall)] == [("c1", "f", '{"a":1}'), ("c2", "g", '{"b":2}')]
    assert [(a.index, a.fragment) for a in every(events, ToolArguments)] == [(0, '{"a"'), (0, ":1}"), (1, '{"b"'), (1, ":2}")]


def test_a_name_that_comes_late() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "", None, "{")), chunk(call(0, "c9", "f", "}")), DONE)
    assert only(events, ToolCall).name == "f"
    assert only(events, ToolCall).call_id == "c9"


def test_arguments_as_an_object() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "c1", "f", {"b": 1, "a": 2})), DONE)
    assert only(events, ToolCall).arguments == '{"b":1,"a":2}'


def test_more_of_a_call_that_looked_whole_is_shown_and_not_told_twice() -> None:
    events = run(
        OpenAIAnswer(), chunk(call(0, "c1", "f", "{}")), chunk(call(0, None, None, " ")), chunk(call(0, None, None, "")), DONE
    )
    assert names(events) == ["Began", "ToolCall", "ToolArguments", "EmptyRecord", "Finished"]


def test_content_in_parts() -> None:
    parts = ["odd", {"type": "text", "text": "a"}, {"type": "reasoning", "text": "b"}, {"type": "image"}]
    events = run(OpenAIAnswer(), chunk({"content": "x"}), chunk({"content": parts}), DONE)
    assert [event.text for event in every(events, TextDelta)] == ["x", "a"]
    assert only(events, ThinkingDelta).text == "b"


def test_what_looks_like_an_object_and_is_none() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "c", "f", "{a}")), DONE)
    assert (only(events, ToolCall).arguments, only(events, ToolCall).whole) == ("{a}", False)


def test_a_call_that_never_gets_an_argument() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "c", "f", "")), chunk(call(0, "c", None, "")), DONE)
    assert only(events, ToolCall).arguments == "{}"


def test_a_call_that_ends_at_the_length_limit_is_told_as_it_is() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "c1", "f", '{"a": "b')), chunk(finish="length"), DONE)
    assert only(events, ToolCall).arguments == '{"a": "b'


def test_a_call_in_a_cut_stream_never_became_one() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "c1", "f", '{"a": "b')), ending="client_disconnect")
    assert names(events) == ["Began", "ToolArguments", "Cut"]


def test_a_call_without_arguments_is_empty_and_whole() -> None:
    events = run(OpenAIAnswer(), chunk(call(0, "c1", "f", "")), chunk(finish="tool_calls"), DONE)
    assert (only(events, ToolCall).arguments, only(events, ToolCall).whole) == ("{}", True)


def test_custom_tools_and_the_former_function_call() -> None:
    custom = {"tool_calls": [{"index": 0, "id": "c1", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}]}
    events = run(OpenAIAnswer(), chunk(custom), chunk(finish="tool_calls"), DONE)
    assert (only(events, ToolCall).name, only(events, ToolCall).arguments) == ("patch", "*** Begin")
    former = run(
        OpenAIAnswer(),
        chunk({"function_call": {"name": "f", "arguments": "{"}}),
        chunk({"function_call": {"arguments": "}"}}),
        DONE,
    )
    assert (only(former, ToolCall).name, only(former, ToolCall).arguments) == ("f", "{}")


def test_arguments_are_bounded() -> None:
    piece = "x" * 1_000_000
    decoder = OpenAIAnswer()
    events = decoder.feed(chunk(call(0, "c1", "f", '{"a')), Nanoseconds(1))
    for _ in range(MAX_RECORD // 1_000_000 + 2):
        events += decoder.feed(chunk(call(0, None, None, piece)), Nanoseconds(1))
    events += decoder.feed(DONE, Nanoseconds(2))
    assert "longer than" in only(events, Malformed).evidence
    assert not every(events, ToolCall)


def test_the_number_of_open_calls_is_bounded() -> None:
    many = {"tool_calls": [{"index": n, "function": {"name": "f", "arguments": "{"}} for n in range(3000)]}
    events = run(OpenAIAnswer(), chunk(many), chunk(finish="stop"), DONE)
    assert len(every(events, ToolCall)) == 1024


# --- errors and nonsense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        sse({"error": {"message": "boom", "type": "api_error"}}),
        sse({"error": "boom"}),
        b'error: {"message":"boom"}\n\n',
        sse({"object": "error", "message": "boom", "type": "BadRequestError", "code": 400}),
        sse({"message": "boom"}, "error"),
        b'{"error":"boom"}\n',
    ],
)
def test_errors_in_every_shape(record: bytes) -> None:
    events = run(OpenAIAnswer(), chunk({"content": "a"}), record, DONE)
    assert only(events, Failed).message == "boom"
    assert names(run(OpenAIAnswer(), record))[-1] == "Cut"


def test_malformed_records_cost_only_themselves() -> None:
    events = run(OpenAIAnswer(), b"data: {]\n\n", b"data: []\n\n", chunk({"content": "a"}), b"data: 1\n\n", DONE)
    assert names(events) == ["Malformed", "Malformed", "Began", "TextDelta", "Malformed", "Finished"]


def test_a_lone_surrogate_and_a_nan_are_read() -> None:
    raw = b'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"a\\ud800b"},"logprobs":NaN}]}\n\n'
    assert only(run(OpenAIAnswer(), raw, DONE), TextDelta).text == "a\ufffdb"


def test_gaps() -> None:
    decoder = OpenAIAnswer()
    events = decoder.feed(chunk({"content": "a"}) + b'data: {"id"', Nanoseconds(1)) + decoder.missed(9, Nanoseconds(2))
    events += decoder.feed(b'x"}\n\n' + chunk({"content": "b"}), Nanoseconds(3)) + decoder.close("complete", Nanoseconds(4))
    assert names(events) == ["Began", "TextDelta", "Missed", "TextDelta", "Finished"]
    assert only(events, Finished).reason is None


def test_an_overlong_record() -> None:
    events = run(OpenAIAnswer(), chunk({"content": "a"}), b"data: " + b"x" * (MAX_RECORD + 1) + b"\n\n", DONE)
    assert names(events) == ["Began", "TextDelta", "Malformed", "Finished"]
    assert names(run(OpenAIAnswer(), b"data: " + b"x" * (MAX_RECORD + 1))) == ["Malformed", "Cut"]


def test_standing() -> None:
    decoder = OpenAIAnswer()
    decoder.feed(chunk({"content": "a"}), Nanoseconds(1))
    standing = decoder.standing()
    assert (standing.response_id, standing.model, standing.created) == ("c1", "m", 7)


# --- whole answers ----------------------------------------------------------------------------------------------------


def whole(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> bytes:
    return json.dumps(
        {"id": "c1", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}
    ).encode()


def test_a_whole_answer() -> None:
    body = whole(
        {"content": "hi", "reasoning": "hm", **call(0, "c1", "f", "{}")},
        "tool_calls",
        usage={"prompt_tokens": 3, "completion_tokens": 2},
    )
    events = run(OpenAIWhole(), body)
    assert names(events) == ["Began", "ThinkingDelta", "TextDelta", "ToolCall", "Usage", "Finished"]


def test_a_whole_answer_without_a_reason_is_the_repeat_abort() -> None:
    events = run(OpenAIWhole(), whole({"content": "aaa"}, None, usage={"prompt_tokens": 0, "completion_tokens": 0}))
    assert names(events) == ["Began", "TextDelta", "Cut"]


def test_whole_completions_errors_and_nonsense() -> None:
    assert names(run(OpenAIWhole(), b'{"choices":[{"text":"a","index":0,"finish_reason":"stop"}]}')) == [
        "Began",
        "TextDelta",
        "Finished",
    ]
    assert names(run(OpenAIWhole(), b'{"error":"x"}')) == ["Failed", "Cut"]
    assert names(run(OpenAIWhole(), b'{"choices":[]}')) == ["Began", "Cut"]
    assert names(run(OpenAIWhole(), b"nonsense")) == ["Malformed", "Cut"]
    assert names(run(OpenAIWhole())) == ["Cut"]
    assert names(run(OpenAIWhole(), b'{"choi', ending="client_disconnect")) == ["Cut"]
    assert (
        names(run(OpenAIWhole(), b'{"a":NaN,"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'))[1] == "TextDelta"
    )
    assert names(run(OpenAIWhole(), b" " * (MAX_RECORD + 1))) == ["Malformed", "Cut"]
    assert not every(run(OpenAIWhole(), whole({"content": ""})), EmptyRecord)


def test_a_whole_answer_with_a_gap_is_unknown() -> None:
    decoder = OpenAIWhole()
    decoder.feed(b'{"choices"', Nanoseconds(1))
    events = decoder.missed(5, Nanoseconds(2)) + decoder.feed(b"}", Nanoseconds(3)) + decoder.close("complete", Nanoseconds(4))
    assert names(events) == ["Missed", "Finished"]


_PIECES = st.sampled_from(
    [
        chunk({"content": "a"}),
        chunk(call(0, "c", "f", "{")),
        chunk(finish="stop"),
        DONE,
        b"data: {",
        b"\n\n",
        sse({"error": 1}),
        b": x\n",
    ]
)


@settings(max_examples=150)
@given(st.lists(_PIECES | st.binary(max_size=40), max_size=12), st.booleans())
def test_never_raises_and_ends_exactly_once(pieces: list[bytes], streamed: bool) -> None:
    events = run(OpenAIAnswer() if streamed else OpenAIWhole(), *pieces)
    assert len(every(events, Finished)) + len(every(events, Cut)) == 1
