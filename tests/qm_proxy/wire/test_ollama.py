"""Ollama's own dialect, beyond what the golden files show."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import (
    Began,
    Cut,
    EmptyRecord,
    Ending,
    Failed,
    Finished,
    Malformed,
    Missed,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    Usage,
)
from qm_proxy.wire.bodies import OVERLONG
from qm_proxy.wire.framing import MAX_RECORD
from qm_proxy.wire.ollama import NativeAnswer, NativeEmbeddings, NativeWhole, Stamp
from tests.qm_proxy.wire.answers import every, line, names, only, run

STAMP = "2026-11-23T08:02:24.215235787Z"
STAMP_NS = 1795420944_215235787


def chat(content: str = "", *, done: bool = False, **more: object) -> bytes:
    thinking = more.pop("thinking", None)
    message: dict[str, object] = {"role": "assistant", "content": content}
    if thinking is not None:
        message["thinking"] = thinking
    if "tool_calls" in more:
        message["tool_calls"] = more.pop("tool_calls")
    return line(model="m", created_at=STAMP, message=message, done=done, **more)


# --- the clock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (STAMP, STAMP_NS),
        ("2026-11-23T08:02:24.2Z", 1795420944_200000000),
        ("2026-11-23T08:02:24.21529Z", 1795420944_215290000),
        ("2026-11-23T08:02:24Z", 1795420944_000000000),
        ("2026-11-23T10:02:24.5+02:00", 1795420944_500000000),
        ("2026-11-23T06:02:24.5-02:00", 1795420944_500000000),
        ("2026-11-23T10:02:24+02:00", 1795420944_000000000),
        ("2026-11-23T08:02:24.2152357879999Z", STAMP_NS),
        ("1969-12-31T23:59:59.9Z", -100_000_000),
        ("", None),
        ("Z", None),
        ("yesterday", None),
        ("2026-11-23T08:02:24.xyzZ", None),
        ("2026-13-23T08:02:24.1Z", None),
        (None, None),
    ],
)
def test_stamps(text: str | None, ns: int | None) -> None:
    fresh = Stamp()
    assert fresh.ns(text) == ns
    warm = Stamp()
    warm.ns("2026-11-23T08:02:24.1Z")
    assert warm.ns(text) == ns


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)), st.integers(0, 9))
def test_stamps_of_any_second_and_any_number_of_digits(moment: datetime, digits: int) -> None:
    second = moment.replace(microsecond=0, tzinfo=timezone.utc)  # noqa: UP017
    fraction = f"{moment.microsecond:06d}789"[:digits]
    text = second.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if fraction else "") + "Z"
    stamp = Stamp()
    expected = round(second.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0"))
    assert stamp.ns(text) == expected
    assert stamp.ns(text) == expected


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_events_of_a_stream_and_their_times() -> None:
    events = run(NativeAnswer(), chat("a"), chat("b") + chat("c"), chat(done=True, done_reason="stop", eval_count=3))
    assert names(events) == ["Began", "TextDelta", "TextDelta", "TextDelta", "Usage", "Finished"]
    assert [event.t_ns for event in every(events, TextDelta)] == [1, 2, 2]
    assert every(events, TextDelta)[0].server_ns == STAMP_NS
    assert only(events, Finished).reason == "stop"


def test_14_a_record_bears_the_time_of_the_read_that_completed_it() -> None:
    events = run(NativeAnswer(), chat("a")[:10], chat("a")[10:-1], b"\n" + chat("b"))
    assert [event.t_ns for event in every(events, TextDelta)] == [3, 3]


def test_25_the_last_record_is_payload_and_end() -> None:
    calls = [{"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": [1, 2]}}}]
    events = run(
        NativeAnswer(), chat("text", thinking="hm", tool_calls=calls, done=True, done_reason="stop", prompt_eval_count=5)
    )
    assert names(events) == ["Began", "ThinkingDelta", "TextDelta", "ToolCall", "Usage", "Finished"]
    assert only(events, ToolCall).arguments == '{"b": 1, "a": [1, 2]}'


def test_26_load_and_unload_answers_have_no_payload() -> None:
    for reason in ("load", "unload"):
        events = run(NativeAnswer(), chat(done=True, done_reason=reason))
        assert names(events) == ["Began", "Finished"]
        assert only(events, Finished).reason == reason


def test_28_zero_and_absent_are_unknown() -> None:
    given_zero = chat(done=True, done_reason="stop", total_duration=0, load_duration=0, prompt_eval_count=0, eval_count=7)
    usage = only(run(NativeAnswer(), given_zero), Usage)
    assert (usage.total_ns, usage.load_ns, usage.input_tokens, usage.output_tokens, usage.prefill_ns) == (
        None,
        None,
        None,
        7,
        None,
    )
    assert not every(run(NativeAnswer(), chat(done=True, total_duration=0)), Usage)


def test_counts_that_are_no_counts() -> None:
    usage = only(
        run(NativeAnswer(), chat(done=True, eval_count=-1, prompt_eval_count=1e300, total_duration=12.0, load_duration=1)), Usage
    )
    assert (usage.output_tokens, usage.input_tokens, usage.total_ns) == (None, None, 12)


def test_33_two_calls_in_two_records_are_counted_apart() -> None:
    call = {"function": {"index": 0, "name": "f", "arguments": {}}}
    events = run(NativeAnswer(), chat(tool_calls=[call, call]), chat(tool_calls=[{**call, "id": "x"}]), chat(done=True))
    assert [(c.index, c.call_id, c.whole) for c in every(events, ToolCall)] == [(0, "", True), (1, "", True), (2, "x", True)]


def test_a_call_without_a_function_and_one_with_a_text() -> None:
    events = run(
        NativeAnswer(), chat(tool_calls=[{"id": "a"}, {"function": {"name": "f", "arguments": '{"x":1}'}}]), chat(done=True)
    )
    assert [(c.name, c.arguments) for c in every(events, ToolCall)] == [("", "{}"), ("f", '{"x":1}')]


def test_generate_text_thinking_and_calls() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    events = run(
        NativeAnswer(generate=True),
        line(model="m", created_at=STAMP, response="a", done=False),
        line(model="m", created_at=STAMP, response="b", done=False),
        line(model="m", created_at=STAMP, response="", thinking="t", done=False),
        line(model="m", created_at=STAMP, response="", done=False),
        line(model="m", created_at=STAMP, response="", tool_calls=[call], done=True, done_reason="stop", context=[1, 2]),
    )
    assert names(events) == ["Began", "TextDelta", "TextDelta", "ThinkingDelta", "EmptyRecord", "ToolCall", "Finished"]
    assert NativeAnswer(generate=True).standing().generate


def test_thinking_goes_the_short_way_too() -> None:
    events = run(NativeAnswer(), chat("a"), chat(thinking="t"), chat("b", thinking="u"), chat(done=True))
    assert names(events)[1:-1] == ["TextDelta", "ThinkingDelta", "ThinkingDelta", "TextDelta"]


def test_withheld_records_are_counted() -> None:
    events = run(NativeAnswer(), chat("a"), chat("", logprobs=[{"token": "x"}]), chat(done=True))
    assert only(events, EmptyRecord).server_ns == STAMP_NS


def test_39_unknown_fields_and_kinds_are_passed_over() -> None:
    events = run(
        NativeAnswer(), line(model="m", new={"x": [1]}, message={"content": "a", "also": 1}, done=False), line(), chat(done=True)
    )
    assert names(events) == ["Began", "TextDelta", "EmptyRecord", "Finished"]


def test_37_the_cloud_host_is_told() -> None:
    events = run(
        NativeAnswer(), line(model="m-cloud", remote_host="https://ollama.com:443", message={"content": "a"}, done=False)
    )
    assert only(events, Began).remote_host == "https://ollama.com:443"


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("complete", "upstream_truncated"),
        ("client_disconnect", "client_disconnect"),
        ("upstream_truncated", "upstream_truncated"),
    ],
)
def test_23_a_stream_without_its_end(ending: Ending, expected: Ending) -> None:
    events = run(NativeAnswer(), chat("a"), ending=ending)
    assert only(events, Cut).ending == expected
    assert not every(events, Finished)


def test_23_an_error_line() -> None:
    events = run(NativeAnswer(), chat("a"), line(error="boom"), ending="client_disconnect")
    assert names(events) == ["Began", "TextDelta", "Failed", "Cut"]
    assert only(events, Failed).message == "boom"
    assert only(events, Cut).ending == "upstream_error"


def test_after_the_end_nothing_more_is_concluded() -> None:
    events = run(
        NativeAnswer(), chat(done=True, done_reason="stop"), chat(done=True, done_reason="stop"), ending="client_disconnect"
    )
    assert len(every(events, Finished)) == 1
    assert not every(events, Cut)


def test_a_last_line_without_its_line_end() -> None:
    assert names(run(NativeAnswer(), chat("a"), chat(done=True).rstrip())) == ["Began", "TextDelta", "Finished"]
    assert "Malformed" in names(run(NativeAnswer(), chat("a"), b'{"mod'))
    assert "Malformed" not in names(run(NativeAnswer(), chat("a"), b'{"mod', ending="client_disconnect"))


def test_an_overlong_record_is_told_and_passed() -> None:
    events = run(NativeAnswer(), chat("a"), b"x" * (MAX_RECORD + 1), b"\n" + chat("b"), chat(done=True))
    assert only(events, Malformed).evidence == OVERLONG
    assert [event.text for event in every(events, TextDelta)] == ["a", "b"]


@pytest.mark.parametrize(
    "bad", [b"\n{]\n", b"null\n", b"[]\n", b'"x"\n', b'{"message":"x"}\n', b'{"done":"yes"}\n', b'{"eval_count":"7"}\n']
)
def test_malformed_lines_cost_only_themselves(bad: bytes) -> None:
    events = run(NativeAnswer(), chat("a"), bad, chat("b"), chat(done=True))
    assert names(events) == ["Began", "TextDelta", "Malformed", "TextDelta", "Finished"]
    assert len(only(events, Malformed).evidence) <= 80


def test_a_deep_line_is_malformed_not_a_crash() -> None:
    deep = b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    assert "Malformed" in names(run(NativeAnswer(), deep, chat(done=True)))


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_gap_joins_nothing_over_itself() -> None:
    decoder = NativeAnswer()
    events = decoder.feed(chat("a") + b'{"model":"m","message":{"content":"be', Nanoseconds(1))
    events += decoder.missed(99, Nanoseconds(2))
    events += decoder.feed(b'fore"},"done":false}\n' + chat("b"), Nanoseconds(3))
    events += decoder.feed(b"bad\n" + chat(done=True), Nanoseconds(4))
    assert names(events) == ["Began", "TextDelta", "Missed", "TextDelta", "Malformed", "Finished"]
    assert only(events, Missed).n_bytes == 99


def test_a_gap_may_hide_the_end() -> None:
    decoder = NativeAnswer()
    decoder.feed(chat("a"), Nanoseconds(1))
    decoder.missed(99, Nanoseconds(2))
    assert decoder.close("complete", Nanoseconds(3)) == [Finished(Nanoseconds(3), None)]


def test_standing_repeats_the_servers_words() -> None:
    decoder = NativeAnswer()
    decoder.feed(chat("a") + chat("b"), Nanoseconds(1))
    assert (decoder.standing().model, decoder.standing().created_at) == ("m", STAMP)


# --- whole answers ----------------------------------------------------------------------------------------------------


def test_a_whole_answer_in_any_layout() -> None:
    body = b'{\n "model": "m",\n "message": {"content": "hi", "thinking": "t"},\n "done": true, "done_reason": "stop"\n}\n'
    events = run(NativeWhole(), body[:9], body[9:30], body[30:])
    assert names(events) == ["Began", "ThinkingDelta", "TextDelta", "Finished"]
    assert {event.t_ns for event in events if isinstance(event, (TextDelta, ThinkingDelta))} == {3}


def test_a_whole_answer_that_is_not_done_is_cut() -> None:
    assert only(run(NativeWhole(), line(model="m", message={"content": "a"}, done=False)), Cut).ending == "upstream_truncated"
    assert only(run(NativeWhole(), ending="client_disconnect"), Cut).ending == "client_disconnect"


# --- progress and embeddings ------------------------------------------------------------------------------------------


def test_38_progress_is_no_token() -> None:
    events = run(
        NativeAnswer(), line(status="pulling manifest"), line(status="pulling x", total=9, completed=3), line(status="success")
    )
    assert names(events) == ["EmptyRecord", "EmptyRecord", "Finished"]
    assert only(run(NativeAnswer(), line(status="pulling manifest")), Cut).ending == "upstream_truncated"


def test_embeddings() -> None:
    events = run(
        NativeEmbeddings(), line(model="e", embeddings=[[0.1] * 9], total_duration=5, load_duration=1, prompt_eval_count=21)
    )
    assert names(events) == ["Began", "Usage", "Finished"]
    assert only(events, Usage).input_tokens == 21
    assert names(run(NativeEmbeddings(), line(embedding=[1]))) == ["Began", "Finished"]
    openai = run(NativeEmbeddings(), line(object="list", data=[], model="e", usage={"prompt_tokens": 12, "total_tokens": 12}))
    assert only(openai, Usage).input_tokens == 12
    assert names(run(NativeEmbeddings(), line(error="no"))) == ["Failed", "Cut"]
    assert names(run(NativeEmbeddings(), b"[")) == ["Malformed", "Cut"]


# --- anything ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([chat("a"), chat(done=True), b'{"error":', b"1\n", b"{}\n"]), max_size=10),
    st.booleans(),
)
def test_never_raises_and_ends_exactly_once(pieces: list[bytes], gap: bool) -> None:
    decoder = NativeAnswer()
    events = [event for piece in pieces for event in decoder.feed(piece, Nanoseconds(1))]
    if gap:
        events += decoder.missed(5, Nanoseconds(2))
    events += decoder.close("complete", Nanoseconds(3))
    assert len(every(events, Finished)) + len(every(events, Cut)) == 1
