from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import (
    Asked,
    Began,
    Event,
    Finished,
    Message,
    Nanoseconds,
    OfferedTool,
    PastCall,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)
from qm_proxy.measure.trajectory import Answer, History, Marker, canonical_arguments

MARKER = Marker(b"secret")
T = Nanoseconds(1)


def _history(*messages: Message) -> History:
    return MARKER.history(messages, MARKER.seed("client"))


def _same(a: Message | list[Message], b: Message | list[Message]) -> bool:
    lists = [m if isinstance(m, list) else [m] for m in (a, b)]
    return _history(*lists[0]).chain == _history(*lists[1]).chain


CALLS = (PastCall("call_1", "bash", '{"command":"ls","n":1}'), PastCall("call_2", "read", '{"path":"a"}'))
ASSISTANT = Message("assistant", "I look.", "thinking", CALLS)


# --- what clients rewrite is no part of a mark -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rewritten",
    [
        replace(ASSISTANT, thinking=""),
        replace(ASSISTANT, text="I look.\n\n "),
        replace(ASSISTANT, text="<think>thinking</think>\nI look."),
        replace(ASSISTANT, calls=(replace(CALLS[0], call_id="toolu_1"), replace(CALLS[1], call_id=""))),
        replace(ASSISTANT, calls=(replace(CALLS[0], arguments='{ "n": 1.0, "command": "ls" }'), CALLS[1])),
        replace(ASSISTANT, calls=(CALLS[1], CALLS[0])),
        [replace(ASSISTANT, calls=()), Message("assistant", calls=(CALLS[0],)), Message("assistant", calls=(CALLS[1],))],
    ],
    ids=["thinking dropped", "blanks", "thinking inside", "ids", "key order", "call order", "cut into messages"],
)
def test_a_rewritten_answer_is_the_same(rewritten: Message | list[Message]) -> None:
    assert _same(ASSISTANT, rewritten)


def test_what_the_assistant_said_or_did_is_part_of_it() -> None:
    for other in (
        replace(ASSISTANT, text="I see."),
        replace(ASSISTANT, calls=CALLS[:1]),
        replace(ASSISTANT, calls=(replace(CALLS[0], name="sh"), CALLS[1])),
        replace(ASSISTANT, calls=(replace(CALLS[0], arguments='{"command":"ls","n":2}'), CALLS[1])),
    ):
        assert not _same(ASSISTANT, other)


def test_injected_blocks_and_system_prompts_are_no_part_of_it() -> None:
    user = Message("user", "fix it")
    reminded = Message(
        "user", "<system-reminder>\nit is noon\n</system-reminder>\nfix it<environment_details>x</environment_details>"
    )
    assert _same([user, ASSISTANT], [Message("system", "now"), reminded, Message("developer", "x"), ASSISTANT])
    assert _same([user], [Message("user", "<system-reminder>only this</system-reminder>"), user])
    unclosed = Message("user", "<system-reminder>fix it")
    assert not _same(unclosed, user)


def test_users_results_and_pictures_are_told_apart() -> None:
    assert not _same(Message("user", "ok"), Message("tool", "ok"))
    assert not _same(Message("user", "look", media=("a",)), Message("user", "look", media=("b",)))
    assert not _same([Message("user", "ab")], [Message("user", "a"), Message("user", "b")])
    assert _history(Message("user", "", media=("a",))).kinds == ["user"]


def test_a_longer_history_begins_with_the_chain_of_the_shorter() -> None:
    messages = [
        Message("user", "a"),
        ASSISTANT,
        Message("tool", "r1", call_id="call_1"),
        Message("tool", "r2"),
        Message("user", "b"),
    ]
    whole = _history(*messages)
    assert whole.kinds == ["user", "say", "call", "call", "result", "result", "user"]
    assert whole.starts == [0, 1, 1, 1, 2, 3, 4]
    assert [(r.atom, r.call_id) for r in whole.results] == [(4, "call_1"), (5, "")]
    assert whole.call_ids == ["call_1", "call_2"]
    for n in range(len(messages)):
        part = _history(*messages[:n])
        assert whole.chain[: len(part.chain)] == part.chain


def test_order_matters_and_scopes_and_keys_never_meet() -> None:
    a, b = Message("user", "a"), Message("user", "b")
    assert _history(a, b).chain[1] != _history(b, a).chain[1]
    assert MARKER.history([a], MARKER.seed("other")).chain != _history(a).chain
    assert Marker(b"other").history([a], 1).marks != MARKER.history([a], 1).marks


def test_marks_fit_the_database() -> None:
    history = _history(*[Message("user", str(i)) for i in range(500)])
    assert all(0 <= mark < 1 << 61 for mark in (*history.marks, *history.chain))
    assert len(set(history.chain)) == 500


# --- arguments --------------------------------------------------------------------------------------------------------

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(_json)
def test_arguments_written_otherwise_are_the_same(value: object) -> None:
    compact = json.dumps(value, separators=(",", ":"))
    assert canonical_arguments(compact) == canonical_arguments(json.dumps(_reversed(value), indent=3, ensure_ascii=False))
    assert canonical_arguments(canonical_arguments(compact).decode()) == canonical_arguments(compact)


def _reversed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _reversed(inner) for key, inner in reversed(value.items())}
    return [_reversed(inner) for inner in value] if isinstance(value, list) else value


def test_whole_floats_are_integers_and_nothing_is_an_empty_object() -> None:
    assert canonical_arguments('{"a":1.0}') == canonical_arguments('{"a":1}')
    assert canonical_arguments('{"a":1e400}') != canonical_arguments('{"a":1}')
    assert canonical_arguments(" ") == canonical_arguments("{}")


@given(st.text(max_size=50))
def test_no_arguments_are_refused(text: str) -> None:
    assert isinstance(canonical_arguments(text), bytes)


def test_arguments_that_are_too_deep_stay_as_they_are() -> None:
    deep = "[" * 100_000
    assert canonical_arguments(deep) == deep.encode()
    assert MARKER.quoted_arguments(deep + "]" * 100_000) == []
    assert canonical_arguments("{not json}") == b"{notjson}"


# --- context, lines, prompts ------------------------------------------------------------------------------------------


def _asked(system: str, *tools: str) -> Asked:
    messages = (Message("system", system), Message("user", "x"))
    return Asked(T, "ollama", "chat", "m", True, messages, tuple(OfferedTool(name, "function") for name in tools))


def test_the_same_kind_of_agent_is_known_with_a_date_or_a_hash_in_its_prompt() -> None:
    long = "You are an agent that fixes things in repositories and says little about it."
    context = MARKER.context(_asked(f"{long} It is 12:00.\nRules: be brief.", "bash", "read"))
    assert context.like(MARKER.context(_asked(f"{long} It is 12:01.\nRules: be brief.", "read", "bash")))
    assert context.like(MARKER.context(_asked(f"x-billing: 77;\n{long} It is 12:00.\nRules: be brief.", "bash", "read")))
    assert not context.like(MARKER.context(_asked("You name conversations.", "bash", "read")))
    assert not context.like(MARKER.context(_asked(f"{long} It is 12:00.\nRules: be brief.", "bash")))
    assert not context.like(None)


def test_lines_are_known_through_quotes_bullets_and_labels() -> None:
    lines = MARKER.lines(["please list all the files"])
    assert len(lines) == 1
    text = "please list all the files"
    for quoted in (f'"{text}"', f"> {text}", f"USER: {text}", f"- `{text}`"):
        assert MARKER.lines([f"Name this:\n{quoted}\n"]) == lines
    assert MARKER.lines(["too short", "<system-reminder>please list all the files</system-reminder>"]) == []
    assert len(MARKER.lines(["\n".join(f"a line with number {i}" for i in range(900))])) == 512


def test_the_text_in_a_calls_arguments_is_known() -> None:
    arguments = json.dumps({"description": "x", "nested": [{"prompt": "explore the repository\nand report back"}]})
    assert MARKER.quoted_arguments(arguments) == MARKER.lines(["explore the repository", "and report back"])


def test_beginnings_of_a_prompt() -> None:
    seed = MARKER.seed("x")
    _, first = MARKER.completion("Once upon a time", [], seed)
    marks, whole = MARKER.completion("Once upon a time there was", [3, 16, 999], seed)
    assert marks[16] == first
    assert 999 not in marks
    assert whole not in (first, marks[3])
    assert MARKER.completion("Once upon a time", [], MARKER.seed("y"))[1] != first


# --- the answer -------------------------------------------------------------------------------------------------------


def _answer(*events: Event) -> Answer:
    answer = Answer(MARKER)
    for event in events:
        assert answer.see(event) == ()
    return answer


def test_an_answer_has_the_marks_its_history_will_have() -> None:
    answer = _answer(
        Began(T, "m", "resp_1"),
        ThinkingDelta(T, "thinking"),
        TextDelta(T, "I lo"),
        TextDelta(T, "ok."),
        ToolCall(T, 0, "call_2", "read", '{"path":"a"}'),
        ToolCall(T, 0, "call_1", "bash", '{"n":1,"command":"ls"}'),
        Finished(T, "stop"),
    )
    assert answer.marks() == _history(ASSISTANT).marks
    assert answer.response_id == "resp_1"
    assert [(call.place, call.call_id, call.name) for call in answer.calls] == [(0, "call_2", "read"), (1, "call_1", "bash")]


def test_nothing_said_is_nothing() -> None:
    assert _answer(ThinkingDelta(T, "hm"), TextDelta(T, " \n")).marks() == []


def test_an_endless_answer_is_given_up_and_held_in_bounds() -> None:
    answer = Answer(MARKER)
    for _ in range(100):
        answer.see(TextDelta(T, "x" * 10_000))
    assert answer.marks() is None
    assert len(answer.text) < 300_000


@given(st.text(max_size=40), st.data())
def test_an_answer_is_the_same_however_it_was_cut(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    assert _answer(TextDelta(T, text[:cut]), TextDelta(T, text[cut:])).marks() == _answer(TextDelta(T, text)).marks()


def test_half_a_character_is_no_error() -> None:
    answer = _answer(TextDelta(T, "\ud83d"), TextDelta(T, "\ude00 and \ud800"), ToolCall(T, 0, "\ud800", "\ud800", '"\ud800"'))
    assert answer.marks()
    assert _history(Message("user", "\ud800", media=("x",)), Message("assistant", "\udfff")).marks
    assert MARKER.lines(["a line with half a character \ud800 in it"])
