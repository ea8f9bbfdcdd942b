from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.steps import Turn, User, Workbook, similar, trigrams
from qm_proxy.events import Message, PastCall

CALLS = st.builds(PastCall, st.sampled_from(["", "a", "b"]), st.text(max_size=9), st.text(max_size=40))


def turn(*calls: tuple[str, str], text: str = "", results: tuple[Message, ...] = ()) -> Turn:
    past = tuple(PastCall(f"c{i}", name, arguments) for i, (name, arguments) in enumerate(calls))
    (step,) = Workbook().read([Message("assistant", text, calls=past), *results])
    assert isinstance(step, Turn)
    return step


def result(text: str, call_id: str = "c0", **more: object) -> Message:
    return Message("tool", text, call_id=call_id, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a": 1, "b": {"c": 2, "d": 3}}', '{"b":{"d":3,"c":2},"a":1.0}', True),
        ('{"a": "x  y"}', '{"a": "x y"}', True),
        ('{"a": 1, "explanation": "first"}', '{"a": 1, "explanation": "second"}', True),
        ("", "{}", True),
        ("not json", "not  json", True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": "1"}', '{"a": 1}', False),
    ],
)
def test_the_same_call(one: str, other: str, same: bool) -> None:
    assert (turn(("f", one)).signature() == turn(("f", other)).signature()) is same
    assert turn(("f", one)).signature() != turn(("g", one)).signature()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("built at 2026-11-24T09:11:12Z in 3.2s", "built at 2026-11-24T09:15:40Z in 4.0s", True),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id 00000000-e89b-12d3-a456-426614174000", True),
        ("at 0x7fcfd1b83560, see /tmp/a1", "at 0x7fcfd0000560, see /tmp/b2", True),
        ("commit 3f2b11aa00bb11cc", "commit aa2b11aa00bb11cd", True),
        ("3 failed", "4 failed", False),
        ("total 12:30 pages", "total 12:31 sheets", False),
        ("a", "b", False),
    ],
)
def test_the_same_result(one: str, other: str, same: bool) -> None:
    first, second = (turn(("f", "{}"), results=(result(text),)) for text in (one, other))
    assert (first.pairs() == second.pairs()) is same


@pytest.mark.parametrize(
    ("text", "is_error", "wrong"),
    [
        ("Error: no such table", None, True),
        ("Traceback (most recent call last):", None, True),
        ("bash: foo: command not found", None, True),
        ('{"error": "denied"}', None, True),
        ("exit code: 2", None, True),
        ("404 not found", None, True),
        ('{"error": null, "rows": []}', None, False),
        ("exit code: 0", None, False),
        ("the error handler was moved", None, False),
        ("all good", True, True),
        ("Error: expected by the test", False, False),
    ],
)
def test_errors(text: str, is_error: bool | None, wrong: bool) -> None:
    assert turn(("f", "{}"), results=(result(text, is_error=is_error),)).failed() is wrong


@pytest.mark.parametrize(
    ("name", "arguments", "answer", "waits"),
    [
        ("get_job_status", "{}", "x", True),
        ("bash", '{"command": "sleep 5"}', "", True),
        ("bash", '{"command": "ls"}', "", False),
        ("bash", '{"command": "curl localhost"}', "curl: (7) Connection refused", True),
        ("fetch", "{}", "503 Service Unavailable", True),
        ("fetch", "{}", "a long page about queues that are pending " * 20, False),
        ("read_file", "{}", "text", False),
    ],
)
def test_what_waits_by_nature(name: str, arguments: str, answer: str, waits: bool) -> None:
    assert turn((name, arguments), results=(result(answer),)).waits() is waits


def test_reading_and_writing() -> None:
    kinds = {
        name: (call.reads, call.writes)
        for name, arguments in (
            ("read_file", "{}"),
            ("write_file", "{}"),
            ("bash", '{"command": "rm x"}'),
            ("shell", '{"command": "ls 2>&1 >/dev/null"}'),
            ("Bash", '{"command": "echo a > b.txt"}'),
        )
        for call in turn((name, arguments)).calls
    }
    assert kinds == {
        "read_file": (True, False),
        "write_file": (False, True),
        "bash": (False, True),
        "shell": (True, False),
        "Bash": (False, True),
    }


def test_results_find_their_calls_by_id_by_name_and_by_order() -> None:
    calls = (("f", '{"a": 1}'), ("g", "{}"))
    by_id = turn(*calls, results=(result("two", "c1"), result("one", "c0")))
    assert [call.result for call in by_id.calls] == [
        call.result for call in turn(*calls, results=(result("one", "c0"), result("two", "c1"))).calls
    ]
    past = tuple(PastCall("", name, arguments) for name, arguments in calls)
    for answers in (
        [Message("tool", "two", tool_name="g"), Message("tool", "one", tool_name="f")],
        [Message("tool", "one"), Message("tool", "two")],
    ):
        (step,) = Workbook().read([Message("assistant", calls=past), *answers])
        assert isinstance(step, Turn)
        assert step.pairs() == by_id.pairs()
    assert not turn(*calls, results=(result("lost", "other"),)).answered()


def test_users_and_words() -> None:
    texts = (("system", "s"), ("user", "Do  it"), ("assistant", "I  do"), ("user", "Do it"))
    steps = Workbook().read([Message(role, text) for role, text in texts])
    assert [type(step) for step in steps] == [User, Turn, User]
    assert steps[0] == steps[2]
    assert trigrams("a b c d") & trigrams("x b c d") == trigrams("b c d")
    assert similar(frozenset("ab"), frozenset("bc")) == 0.5


def test_parallel_calls_have_no_order() -> None:
    a, b = ("f", '{"x": 1}'), ("f", '{"x": 2}')
    assert turn(a, b).signature() == turn(b, a).signature()


def test_a_history_without_its_beginning_goes_on_where_it_was() -> None:
    book = Workbook()
    before = book.read([Message("user", "go")])
    live = book.turn("", [("f", "{}")])
    after = book.read([Message("tool", "done", call_id="r1")], [*before, live], [("r1", live.calls[0])])
    assert isinstance(after[-1], Turn)
    assert after[-1].answered()


def test_memory_is_bounded() -> None:
    book = Workbook()
    for i in range(17_000):
        book.read([Message("assistant", calls=(PastCall("c", "f", f'{{"a": {i}}}'),)), Message("tool", f"r{i}", call_id="c")])
    assert len(book._calls) <= 16_384
    assert len(book._results) <= 16_384


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            Message,
            role=st.sampled_from(["system", "user", "assistant", "tool", "developer", ""]),
            text=st.text(max_size=60),
            calls=st.lists(
                st.builds(PastCall, st.sampled_from(["", "a"]), st.text(max_size=9), st.text(max_size=40)), max_size=3
            ).map(tuple),
            call_id=st.sampled_from(["", "a", "b"]),
            tool_name=st.text(max_size=5),
            is_error=st.sampled_from([None, True, False]),
        ),
        max_size=12,
    )
)
def test_it_never_raises(messages: list[Message]) -> None:
    Workbook().read(messages)


def test_huge_arguments_and_results() -> None:
    book = Workbook()
    deep = '{"a":' * 3000 + "1" + "}" * 3000
    wide = '{"a": "' + "x" * 2_000_000 + '"}'
    for arguments in (deep, wide):
        book.read(
            [Message("assistant", calls=(PastCall("c", "f", arguments),)), Message("tool", "12:30 " * 300_000, call_id="c")]
        )
