from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from qm_proxy.detect import call_loop
from qm_proxy.detect.call_loop import CallLoop, CallLoops
from qm_proxy.events import Asked, Cut, Event, Finished, Message, Nanoseconds, PastCall, TextDelta, ToolCall
from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Placed

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.detect.trajectories import LEGITIMATE, LOOPS, Answer, Session, answers, one, opened, replay, session

T = Nanoseconds(9)
USER: list[str | Answer] = ["Fix the parser, please."]


def found(steps: list[str | Answer], loops: CallLoops | None = None, seed: int = 1) -> list[tuple[int, Finding]]:
    return list(replay(Session("", USER + steps), (loops or CallLoops()).watch, random.Random(seed)))


def forms(steps: list[str | Answer]) -> list[tuple[int, object, str]]:
    return [(i, finding.evidence["form"], finding.severity) for i, finding in found(steps)]


READ: str | Answer = one("read_file", {"path": "a.py"}, "text of a")
OTHER: str | Answer = one("read_file", {"path": "b.py"}, "text of b")
FAIL: str | Answer = one("read_file", {"path": "c.py"}, "Error: no such file", error=True)


def test_a_cycle_is_told_with_the_answer_that_adds_its_deciding_copy() -> None:
    assert forms([READ] * 4) == [(4, "cycle", "violation")]
    assert forms([READ] * 3) == []
    assert forms([FAIL] * 3) == [(3, "cycle", "violation")]
    assert forms([READ, OTHER] * 3) == [(6, "cycle", "violation")]
    assert forms([READ, OTHER] * 2 + [READ]) == []
    assert [told for told in forms([READ, READ, OTHER] * 3) if told[2] == "violation"] == [(9, "cycle", "violation")]


def test_it_is_told_again_at_twice_its_length() -> None:
    assert [i for i, _, _ in forms([READ] * 33)] == [4, 8, 16, 32]
    assert [i for i, _, _ in forms([READ, OTHER] * 13)] == [6, 12, 24]


def test_evidence() -> None:
    ((_, finding),) = found([READ, OTHER] * 3)
    assert finding.kind == "loop.trajectory"
    assert finding.evidence == {
        "form": "cycle",
        "rule": "cycle",
        "period": 2,
        "copies": 3,
        "bar": 3,
        "tools": ["read_file", "read_file"],
    }
    assert "text of" not in finding.summary
    assert finding.t_ns == 1


def test_one_loop_is_one_finding_whatever_rule_sees_it_first() -> None:
    echo = one("read_file", {"path": "a.py"}, "text of a", "I look again.")
    assert [i for i, _, _ in forms([echo] * 5)] == [3]
    (_, finding), *_ = found([echo] * 3)
    assert "3rd time" in finding.summary


def test_a_retry_is_not_told_again() -> None:
    loops = CallLoops()
    history = [Message("user", "go")]
    for i in range(3):
        history += [Message("assistant", calls=(PastCall(f"c{i}", "read_file", "{}"),)), Message("tool", "same", call_id=f"c{i}")]
    call = ToolCall(T, 0, "c3", "read_file", "{}")
    assert [len(see(watch(history, loops), call, Finished(T, None))) for _ in range(3)] == [1, 0, 0]


def test_a_new_result_or_a_users_words_reset() -> None:
    changed: str | Answer = one("read_file", {"path": "a.py"}, "other text")
    assert forms([READ] * 2 + [changed] + [READ] * 2 + [changed] * 2 + [READ]) == []
    assert forms([*[READ] * 3, "No, look at b.py.", *[READ] * 3]) == []
    assert [i for i, _, _ in forms([*[READ] * 4, "No, look at b.py.", *[READ] * 4])] == [4, 9]


def test_waiting_has_a_higher_bar() -> None:
    poll = one("get_job_status", {"id": 1}, "pending")
    assert forms([poll] * 11) == []
    assert forms([poll] * 12) == [(12, "poll", "suspect")]


def test_the_same_words_with_the_same_call() -> None:
    echo = one("read_file", {"path": "a.py"}, "text of a", "</think>")
    assert forms([echo] * 3) == [(3, "echo", "violation")]


def test_the_same_error_whatever_the_arguments() -> None:
    tries: list[str | Answer] = [one("get", {"url": f"/{i}"}, "Error: 401 Unauthorized", error=True) for i in range(9)]
    assert forms(tries[:4]) == []
    assert forms(tries[:5]) == [(5, "same_error", "violation")]
    edit = one("write_file", {"path": "token"}, "File written.")
    assert forms([*tries[:3], edit, *tries[3:6]]) == [], "something was done about it"
    fine = one("get", {"url": "/ok"}, "hello")
    assert forms([*tries[:3], fine, *tries[3:6]]) == []


def test_monologue() -> None:
    said = Answer("I will now open the file and fix the second function in it.")
    assert forms([said, "Continue.", said, "Continue.", said]) == [(5, "monologue", "violation")]
    assert forms([said, "Continue.", READ, said, "Continue.", said]) == []
    assert forms([said, "Why?", said, "How?", said]) == [], "a user asked something new each time"
    assert forms([said] * 3) == [(3, "monologue", "violation")]


def test_near_duplicates_of_reading_only() -> None:
    searches: list[str | Answer] = [
        one("search", {"query": "timeout of the relay", "scope": "all", "page": i}, "No results.") for i in range(8)
    ]
    assert forms(searches) == [(6, "near_duplicate", "suspect")]
    written = ({"path": f"out/{i}.txt", "mode": "w", "text": "x y z"} for i in range(20))
    writes: list[str | Answer] = [one("write", arguments, "File written.") for arguments in written]
    assert forms(writes) == []


def test_re_reading_is_a_cost_and_a_write_makes_it_none() -> None:
    others: list[str | Answer] = [one("read_file", {"path": f"{i}.py"}, f"text {i}") for i in range(6)]
    steps = [READ, *others[:2], READ, *others[2:4], READ, *others[4:], READ]
    assert forms(steps) == [(10, "re_reading", "info")]
    edit = one("edit_file", {"path": "a.py", "new": "x"}, "File written.")
    assert forms([*steps[:5], edit, *steps[5:]]) == []


def test_an_answer_that_breaks_the_cycle_is_no_finding() -> None:
    assert forms([*[READ] * 3, OTHER]) == []
    assert forms([READ, OTHER, READ, OTHER, READ, FAIL]) == []


def watch(messages: list[Message], loops: CallLoops, **more: object) -> CallLoop:
    made = opened(messages, ("s", 0), 1)
    asked = made.asked
    assert asked is not None
    for name, value in more.items():
        setattr(asked, name, value)
    detector = loops.watch(made)
    assert detector is not None
    return detector


def see(detector: CallLoop, *events: Event) -> list[Finding]:
    return [finding for event in events for finding in detector.see(event)]


def test_a_line_whose_requests_bring_no_history() -> None:
    loops = CallLoops()
    findings = []
    for i in range(6):
        messages = [Message("user", "go")] if i == 0 else [Message("tool", "same", call_id=f"c{i - 1}")]
        before = f"r{i}" if i else None
        detector = watch(messages, loops, dialect="openai-responses", previous_response_id=before)
        call = ToolCall(T, 0, f"c{i}", "read_file", '{"path": 1}')
        findings += [(i, finding.evidence["form"]) for finding in see(detector, call, Finished(T, None))]
    assert findings == [(3, "cycle")]


def test_an_interrupted_answer_counts_when_it_has_made_its_call() -> None:
    loops = CallLoops()
    history = [Message("user", "go")]
    for i in range(3):
        history += [Message("assistant", calls=(PastCall(f"c{i}", "read_file", "{}"),)), Message("tool", "same", call_id=f"c{i}")]
    call = ToolCall(T, 0, "c3", "read_file", "{}")
    assert len(see(watch(history, loops), call, Cut(T, "upstream_truncated"))) == 1
    assert see(watch(history, CallLoops()), TextDelta(T, "hm"), Cut(T, "client_disconnect")) == []


def test_without_a_place_it_is_told_at_each_doubling_exactly() -> None:
    loops = CallLoops()
    told = []
    history = [Message("user", "go")]
    for i in range(20):
        detector = loops.watch(opened(list(history), None, i))
        assert detector is not None
        told += [i + 1 for _ in see(detector, ToolCall(T, 0, f"c{i}", "read_file", "{}"), Finished(T, "tool_calls"))]
        history += [Message("assistant", calls=(PastCall(f"c{i}", "read_file", "{}"),)), Message("tool", "same", call_id=f"c{i}")]
    assert told == [4, 8, 16]


def test_nothing_to_compare() -> None:
    loops = CallLoops()
    for asked in (None, Asked(T, "ollama", "embeddings", "m", False), Asked(T, "ollama", "text_completion", "m", True)):
        assert loops.watch(Opened("e", T, "", "POST", "/", "ollama", "chat", "m", True, "c", None, "client", asked)) is None
    detector = loops.watch(opened([], None, 1))
    assert detector is not None
    assert see(detector, Finished(T, "stop")) == []


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("compact", [False, True])
def test_every_loop_family(kind: str, compact: bool) -> None:
    rng = random.Random(11)
    for _ in range(3):
        made = session(rng, kind)
        told = [i for i, _ in replay(made, CallLoops().watch, rng, ids=rng.random() < 0.5, compact=compact)]
        assert told, made.kind
        assert made.onset is not None
        assert told[0] >= made.onset


@pytest.mark.parametrize("kind", LEGITIMATE)
def test_every_legitimate_family(kind: str) -> None:
    rng = random.Random(12)
    for _ in range(4):
        made = session(rng, kind)
        told = [finding for _, finding in replay(made, CallLoops().watch, rng) if finding.severity != "info"]
        assert told == [], [finding.summary for finding in told]


def test_a_long_session_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_loop, "_LINES", 64)
    rng = random.Random(5)
    loops = CallLoops()
    made = Session("long", USER + LEGITIMATE["ordinary work"](rng) * 5)
    assert sum(1 for _ in answers(made)) > 70
    list(replay(made, loops.watch, rng))
    for i in range(200):
        detector = loops.watch(opened([Message("user", "x")], (f"s{i}", 0), 1))
        assert detector is not None
        see(detector, TextDelta(T, "y" * 100_000), ToolCall(T, 0, "c", "f", "{}"), Finished(T, None))
    detector = loops.watch(opened([Message("user", "x")], ("s", 0), 1))
    assert detector is not None
    see(detector, *(ToolCall(T, 0, "c", "f", "{}") for _ in range(3000)))
    assert len(detector._calls) <= 256
    assert len(loops._told) <= 64
    assert len(loops._kept) <= 512


def test_placed_says_which_line() -> None:
    made = opened([], ("s", 3), 2)
    assert isinstance(made.placed, Placed)
    assert made.placed.trajectory == 3
