from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.ends import Ends, How
from qm_proxy.events import (
    Began,
    Cut,
    Dialect,
    Ending,
    Event,
    Failed,
    Finished,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    Usage,
)
from qm_proxy.findings import Finding

T = Nanoseconds(5)
TEXT = [TextDelta(T, piece) for piece in ("The ", "answer ", "is ", "four", ".")]


def found(*events: Event, dialect: Dialect = "ollama", how: How | None = None) -> list[Finding]:
    ends = Ends(dialect, None if how is None else lambda: how)
    return [finding for event in events for finding in ends.see(event)]


def cause(*events: Event, dialect: Dialect = "ollama", how: How | None = None) -> tuple[object, str] | None:
    findings = found(*events, dialect=dialect, how=how)
    assert len(findings) <= 1
    assert all(finding.kind == "upstream.aborted" for finding in findings)
    return (findings[0].evidence["cause"], findings[0].severity) if findings else None


def test_good_ends_are_no_findings() -> None:
    assert cause(Began(T, "m", None), *TEXT, Usage(T, output_tokens=5), Finished(T, "stop")) is None
    assert cause(*TEXT, Finished(T, None)) is None, "a stream without include_usage counts nothing"
    assert cause(ToolCall(T, 0, "c", "f", "{}"), Finished(T, "tool_calls")) is None
    assert cause(*TEXT, Cut(T, "client_disconnect")) is None
    assert cause(*TEXT, Cut(T, "guard_cut")) is None
    assert cause(*TEXT, Cut(T, "shutdown")) is None


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failed(T, 200, "an error was encountered while running the model: unexpected EOF"), ("crash", "violation")),
        (Failed(T, 200, ""), ("crash", "violation")),
        (Failed(T, 200, "out of patience"), ("error", "violation")),
        (
            Failed(T, 500, "model runner has unexpectedly stopped"),
            ("crash", "violation"),
        ),
        (Failed(T, 500, "template: error calling slice"), None),
        (Failed(T, 400, "unexpected EOF"), None),
        (Failed(T, 404, "model 'x' not found"), None),
        (Failed(T, 200, "prediction aborted, token repeat limit reached"), None),
        (Failed(T, 200, "error parsing tool call: raw='{'"), None),
    ],
)
def test_errors(failure: Failed, expected: object) -> None:
    assert cause(*TEXT, failure, Cut(T, "upstream_error")) == expected


def test_a_swallowed_error_says_so() -> None:
    (finding,) = found(*TEXT, Failed(T, 200, ""), dialect="openai-chat")
    assert finding.evidence["swallowed"] is True
    assert "hides" in finding.summary


@pytest.mark.parametrize("n", [30, 31, 40, 500])
@pytest.mark.parametrize("ending", [Cut(T, "upstream_truncated"), Finished(T, None), Finished(T, "completed")])
def test_the_servers_repeat_limit(n: int, ending: Event) -> None:
    same = [TextDelta(T, " a\n" if i % 2 else "a") for i in range(n)]
    expected = ("repeat_limit", "violation") if n >= 31 else ("unknown", "suspect") if isinstance(ending, Cut) else None
    assert cause(*TEXT, *same, ending) == expected
    assert cause(TextDelta(T, "The answer: " + "ab " * n), ending) == expected, "however it was cut"
    assert cause(*TEXT, *same, Usage(T, output_tokens=n), Finished(T, "stop")) is None, "the server counted to the end"


def test_without_terminal_record() -> None:
    cut = Cut(T, "upstream_truncated")
    assert cause(*TEXT, cut) == ("unknown", "suspect")
    assert "swallows" in found(*TEXT, cut, dialect="anthropic")[0].summary
    assert cause(*TEXT, cut, how=How(clean=False)) == ("connection_lost", "violation")
    assert cause(*TEXT, cut, how=How(clean=True)) == ("unknown", "suspect")
    assert cause(cut) == ("no_answer", "violation")
    assert cause(ThinkingDelta(T, "hm"), cut) == ("unknown", "suspect")


@pytest.mark.parametrize("ending", ["client_disconnect", "upstream_truncated"])
def test_a_clients_half_close(ending: Ending) -> None:
    assert cause(*TEXT, Cut(T, ending), how=How(True, client_half_closed=True)) == ("client_half_close", "info")


def test_an_end_is_told_once() -> None:
    assert len(found(*TEXT, Failed(T, 200, "EOF"), Cut(T, "upstream_truncated"), Cut(T, "upstream_truncated"))) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=80), st.text(max_size=80), st.integers(0, 999))
def test_it_never_raises(pieces: list[str], message: str, status: int) -> None:
    found(*(TextDelta(T, piece) for piece in pieces), Failed(T, status, message), Cut(T, "upstream_truncated"))
    found(*(TextDelta(T, piece) for piece in pieces), Finished(T, None))


def test_a_hostile_tail_is_no_work() -> None:
    for text in ("ab" * 100_000 + "c", "a " * 100_000 + "b", "\n" * 100_000, ("x" * 63 + " ") * 5000 + "y", "aab" * 50_000):
        found(TextDelta(T, text), Cut(T, "upstream_truncated"))
