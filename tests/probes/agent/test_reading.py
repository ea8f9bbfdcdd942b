from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.agent.reading import read_turn
from probes.ask import Answer
from qm_proxy.events import Began, Event, Failed, Finished, Nanoseconds, TextDelta, ThinkingDelta, ToolCall

T = Nanoseconds(0)
OFFERED = ("read_file", "deploy")


def _answer(*events: Event, reason: str = "stop") -> Answer:
    return Answer("k", status=200, events=[Began(T, "m", None), *events, Finished(T, reason)])


def _text(text: str, reason: str = "stop") -> Answer:
    return _answer(TextDelta(T, text), reason=reason)


def test_native_calls_are_read_in_order() -> None:
    reading = read_turn(
        _answer(ToolCall(T, 0, "c1", "read_file", '{"path":"a"}'), ToolCall(T, 1, "", "deploy", "{}")),
        native=True,
        offered=OFFERED,
    )
    assert [(m.name, m.arguments, m.call_id) for m in reading.moves] == [("read_file", {"path": "a"}, "c1"), ("deploy", {}, "")]


@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        ("", {}),
        ('{"a":1}', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ("[1]", None),
        ("{", None),
        ("nan", None),
        ("7", None),
        ("null", None),
    ],
)
def test_arguments_that_are_no_object_are_none(raw: str, arguments: dict[str, object] | None) -> None:
    reading = read_turn(_answer(ToolCall(T, 0, "", "read_file", raw)), native=True, offered=OFFERED)
    assert reading.moves[0].arguments == arguments


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "read_file", "arguments": {"path": "a"}}',
        'Sure:\n```json\n{"name": "read_file", "arguments": {"path": "a"}}\n```',
        '{"tool": "read_file", "args": {"path": "a"}}',
        '[{"type": "function", "function": {"name": "read_file", "arguments": "{\\"path\\": \\"a\\"}"}}]',
        'I think {so}. {"name": "read_file", "parameters": {"path": "a"}} done',
    ],
)
def test_the_prompt_path_finds_the_object_in_the_text(text: str) -> None:
    reading = read_turn(_text(text), native=False, offered=OFFERED)
    assert [(move.name, move.arguments) for move in reading.moves] == [("read_file", {"path": "a"})]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "read_file", "arguments": {}}\n</tool_call>',
        "<function=read_file><parameter=path>a</parameter></function>",
        '[TOOL_CALLS][{"name": "read_file"}]',
        "<|channel|>commentary to=functions.read_file <|message|>{}",
        "<｜tool▁calls▁begin｜>function<｜tool▁sep｜>read_file",
        "Action: read_file\nAction Input: {}",
        '{"name": "read_file", "arguments": {"path": "a"}}',
    ],
)
def test_a_call_in_the_text_of_a_native_turn_is_a_foreign_dialect(text: str) -> None:
    reading = read_turn(_text(text), native=True, offered=OFFERED)
    assert (reading.sort, reading.sub) == ("malformed", "ForeignDialect")


@pytest.mark.parametrize("native", [True, False])
def test_broken_json_is_told_from_prose(native: bool) -> None:
    broken = read_turn(_text('{"name": "read_file", "arguments": {"path": '), native=native, offered=OFFERED)
    assert (broken.sort, broken.sub) == ("malformed", "BrokenJson")
    prose = read_turn(_text("I would set {x} and call it a day."), native=native, offered=OFFERED)
    assert (prose.sort, prose.sub) == ("no_call", "AnsweredInProse")


def test_silence_has_its_kinds() -> None:
    def sub(answer: Answer) -> str | None:
        return read_turn(answer, native=True, offered=OFFERED).sub

    assert sub(_answer()) == "EmptyOutput"
    assert sub(_answer(ThinkingDelta(T, "hm"))) == "EmptyOutput"
    assert sub(_answer(ThinkingDelta(T, "hm"), reason="length")) == "ThinkingExhausted"
    assert sub(_text("and then", reason="length")) == "CutShort"
    assert sub(_text("<think>hm")) == "ThinkingAloud"


def test_infrastructure_is_told_from_the_model() -> None:
    def sort(answer: Answer) -> tuple[str, str | None]:
        reading = read_turn(answer, native=True, offered=OFFERED)
        return reading.sort, reading.sub

    began = Began(T, "m", None)
    assert sort(Answer("k", status=None, ending="upstream_unreachable", error="refused")) == ("infra", None)
    assert sort(Answer("k", status=200, ending="upstream_truncated", events=[began])) == ("infra", None)
    assert sort(Answer("k", status=200, ending="upstream_truncated", events=[began], error="no byte for 600 s")) == (
        "infra",
        None,
    )
    assert sort(Answer("k", status=200, ending="upstream_truncated", events=[began], error="not finished within 600 s")) == (
        "timeout",
        None,
    )
    failed = Failed(T, 500, "error parsing tool call: raw='{'")
    assert sort(Answer("k", status=500, ending="upstream_error", events=[failed], error=failed.message)) == (
        "malformed",
        "ParserError",
    )
    full = Failed(T, 400, "request exceeds the available context size", n_prompt_tokens=700, n_ctx=512)
    assert sort(Answer("k", status=400, ending="upstream_error", events=[full], error=full.message)) == ("overflow", None)


def test_the_servers_repeat_guard_is_the_models_doing() -> None:
    pieces: list[Event] = [TextDelta(T, "a") for _ in range(31)]
    cut = Answer("k", status=200, ending="upstream_truncated", events=pieces)
    assert read_turn(cut, native=True, offered=OFFERED).sub == "TokenLoop"
    cut.events = pieces[:30]
    assert read_turn(cut, native=True, offered=OFFERED).sort == "infra"


def test_going_round_in_words_is_told_by_the_rule_of_live_traffic() -> None:
    looping = "I will look at the file again. " * 30
    assert read_turn(_text(looping, "length"), native=True, offered=OFFERED).sub == "TokenLoop"
    assert read_turn(_text(looping[:62], "length"), native=True, offered=OFFERED).sub == "CutShort"
    fresh = " ".join(f"Line {n} of the plan differs from line {n * n}." for n in range(4))
    assert read_turn(_text(fresh, "stop"), native=True, offered=OFFERED).sub == "AnsweredInProse"


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='{}[]":,abcn \n<>|', max_size=200), native=st.booleans(), reason=st.sampled_from(["stop", "length"]))
def test_any_text_is_read(text: str, native: bool, reason: str) -> None:
    assert read_turn(_text(text, reason), native=native, offered=OFFERED).sort in ("calls", "no_call", "malformed")


def test_deep_and_huge_texts_are_read() -> None:
    for text in ("[" * 100_000, '{"a":' * 50_000, json.dumps({"name": "x", "arguments": {"t": "y" * 2_000_000}}), "{" * 300_000):
        assert read_turn(_text(text), native=False, offered=OFFERED).sort in ("calls", "no_call", "malformed")


def test_half_a_character_can_be_sent_back() -> None:
    reading = read_turn(_text('\ud800{"name": "x\ud800", "arguments": {"k\ud800": ["\ud800"]}}'), native=False, offered=OFFERED)
    json.dumps([reading.text, reading.moves[0].name, reading.moves[0].arguments], ensure_ascii=False).encode()
