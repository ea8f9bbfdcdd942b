from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.stall import SILENT_NS, Stall, Surroundings
from qm_proxy.events import (
    Began,
    Cut,
    Deltas,
    EmptyRecord,
    Event,
    Finished,
    HostSample,
    Missed,
    Nanoseconds,
    Residency,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolCall,
    Usage,
)
from qm_proxy.findings import Finding

MS = 1_000_000
GAP = 16 * MS
SERVER = 1_700_000_000_000_000_000


def ns(t: int) -> Nanoseconds:
    return Nanoseconds(t)


def stream(gaps: Iterable[int], server: Iterable[int] | None = None) -> list[Event]:
    t, s = SILENT_NS, SERVER
    events: list[Event] = [Began(ns(t), "m", None), TextDelta(ns(t), "x", s)]
    for gap, server_gap in zip(gaps, server if server is not None else [-1] * 10**6, strict=False):
        t += gap
        s += server_gap
        events.append(TextDelta(ns(t), "x", s if server is not None else None))
    return events


def found(events: Iterable[Event], stall: Stall | None = None) -> list[Finding]:
    stall = stall or Stall()
    return [finding for event in events for finding in stall.see(event)]


def end(events: list[Event]) -> Event:
    return Finished(events[-1].t_ns, "stop")


STEADY = [GAP] * 40


def test_a_stall_is_told_with_its_numbers() -> None:
    events = stream([*STEADY, 90 * MS, *STEADY])
    (finding,) = found(events)
    assert (finding.kind, finding.severity, finding.chunk) == ("stall", "info", 41)
    assert finding.t_ns == events[42].t_ns
    assert finding.evidence["gap_s"] == 0.09
    assert finding.evidence["median_gap_s"] == 0.016
    assert finding.evidence["threshold_s"] == 0.036
    assert finding.evidence["expected_false_per_1000_gaps"] == 0.1
    assert (finding.evidence["cause"], finding.evidence["side"]) == ("unexplained", None)


def test_it_is_told_one_chunk_later_or_at_the_end() -> None:
    events = stream([*STEADY, 2_000 * MS])
    stall = Stall()
    assert found(events, stall) == []
    (finding,) = found([end(events)], stall)
    assert finding.severity == "suspect"
    stall = Stall()
    found(events, stall)
    assert len(stall.tick(events[-1].t_ns + 200 * MS)) == 1


@pytest.mark.parametrize(
    "gaps",
    [
        [*STEADY, 30 * MS, *STEADY],
        [*STEADY, 9 * GAP // 4, *STEADY],
        [3 * MS] * 40 + [12 * MS] + [3 * MS] * 40,  # less than 10 ms beyond
        [900 * MS, *STEADY],  # the engine's first gaps
        [*STEADY, 3 * GAP, 0, 0, *STEADY],  # three in one read
        [x for _ in range(60) for x in (4 * GAP, 0, 0, 0)],  # bursts
        [GAP] * 5 + [80 * MS] + [GAP] * 5,  # too early to know
        [],
    ],
)
def test_ordinary_gaps(gaps: list[int]) -> None:
    events = stream(gaps)
    assert found([*events, end(events)]) == []


def test_a_stall_before_joined_reads_is_still_one() -> None:
    assert found(stream([*STEADY, 3 * GAP + 15 * MS, 0, 0, *STEADY])) == []
    (finding,) = found(stream([*STEADY, 100 * MS, 0, 0, *STEADY]))
    assert finding.chunk == 41


def test_tokens_held_back_and_delivered_at_once() -> None:
    (finding,) = found(stream([*STEADY, 20 * GAP, *[0] * 19, *STEADY]))
    assert finding.evidence["delivered_at_once"] == 20
    assert finding.evidence["cause"] == "delivery"


def test_a_pause_in_a_stream_of_bursts() -> None:
    bursts = [x for _ in range(30) for x in (4 * GAP, 0, 0, 0)]
    (finding,) = found(stream([*bursts, 700 * MS, 0, 0, 0, *bursts]))
    assert finding.evidence["threshold_s"] == 0.25


def test_two_clocks_tell_the_side() -> None:
    gaps = [*STEADY, 300 * MS, *STEADY]
    (finding,) = found(stream(gaps, gaps))
    assert (finding.evidence["side"], finding.evidence["cause"]) == ("server", "unexplained")
    (finding,) = found(stream(gaps, [GAP] * 81))
    assert (finding.evidence["side"], finding.evidence["cause"]) == ("delivery", "delivery")
    assert finding.evidence["server_gap_s"] == 0.016


def around(**known: object) -> Callable[[int, int], Surroundings]:
    return lambda _from, _to: Surroundings(**known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("surroundings", "cause"),
    [
        (around(client_slow_ns=250 * MS), "slow_client"),
        (around(client_slow_ns=20 * MS), "unexplained"),
        (around(started=("exchange-2",)), "other_request"),
        (around(), "unexplained"),
    ],
)
def test_a_cause_from_the_surroundings(surroundings: Callable[[int, int], Surroundings], cause: str) -> None:
    (finding,) = found(stream([*STEADY, 300 * MS, *STEADY]), Stall(surroundings))
    assert finding.evidence["cause"] == cause


def test_the_surroundings_are_asked_for_stalls_only() -> None:
    asked = []

    def surroundings(began: int, ended: int) -> Surroundings:
        asked.append(ended - began)
        return Surroundings()

    found(stream([*STEADY, 300 * MS, *STEADY]), Stall(surroundings))
    assert asked == [300 * MS]


@pytest.mark.parametrize(
    ("sample", "cause"),
    [
        ({"swap_in_per_s": 5e7}, "swap"),
        ({"pressure": 0.4}, "memory_pressure"),
        ({"gpu_throttled": True}, "gpu_throttled"),
        ({"gpu_memory_used": 995, "gpu_memory_total": 1000}, "gpu_memory"),
        ({"cpu": 1.0, "swap_in_per_s": 10.0, "pressure": 0.0, "gpu_memory_used": 5, "gpu_memory_total": 1000}, "unexplained"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_a_cause_from_the_host_before_or_just_after(sample: dict[str, float], cause: str, later: bool) -> None:
    events = stream([*STEADY, 300 * MS, *STEADY])
    at = events[42 if later else 41].t_ns
    host = HostSample(ns(at + (30 * MS if later else -500 * MS)), **sample)  # type: ignore[arg-type]
    events.insert(46 if later else 41, host)
    (finding,) = found(events)
    assert finding.evidence["cause"] == cause
    assert finding.summary.endswith(".")


def test_an_old_sample_proves_nothing() -> None:
    events = stream([*[GAP] * 400, 300 * MS, *STEADY])
    events.insert(2, HostSample(events[2].t_ns, pressure=0.9))
    (finding,) = found(events)
    assert finding.evidence["cause"] == "unexplained"


def test_periodic() -> None:
    findings = found(stream([x for _ in range(6) for x in (*[GAP] * 60, 120 * MS)] + STEADY))
    assert [finding.evidence["cause"] for finding in findings] == ["unexplained"] * 3 + ["periodic"] * 3
    assert findings[-1].evidence["period"] == {"chunks": 61.0}
    rng = random.Random(1)
    uneven = found(stream([x for _ in range(6) for x in (*[GAP] * rng.randint(30, 120), 120 * MS)] + STEADY))
    assert {finding.evidence["cause"] for finding in uneven} == {"unexplained"}


def test_a_held_back_tool_call_is_no_stall() -> None:
    events = stream(STEADY)
    arguments = '{"content": "' + "x" * 2000 + '"}'
    writing = ns(events[-1].t_ns + 600 * GAP)
    assert found([*events, ToolCall(writing, 0, "c", "write", arguments), Finished(writing, "stop")]) == []
    long = ns(events[-1].t_ns + 3_000 * GAP)
    stall = Stall()
    (finding,) = found([*events, ToolCall(long, 0, "c", "write", "{}"), Finished(long, "stop")], stall)
    assert finding.kind == "stall"
    split = ToolCall(writing, 0, "c", "write", arguments, whole=False)
    pieces = [ToolArguments(ns(events[-1].t_ns + i * GAP), 0, "x") for i in range(1, 30)]
    assert found([*events, *pieces, split, Finished(writing, "stop")]) == []


def test_silence_is_noticed_by_whatever_tells_the_time_and_told_once() -> None:
    events = stream(STEADY)
    last = events[-1].t_ns
    stall = Stall()
    assert found([*events, HostSample(ns(last + SILENT_NS - 1))], stall) == []
    (finding,) = found([Residency(ns(last + SILENT_NS + 1), ())], stall)
    assert finding.kind == "stream.silent"
    assert found([HostSample(ns(last + 2 * SILENT_NS))], stall) == []
    back = [TextDelta(ns(last + 3 * SILENT_NS + i * GAP), "x") for i in range(40)]
    assert found(back, stall) == [], "the silence has been told"
    assert finding.evidence["resumed_after_s"] == 90.0
    (again,) = stall.tick(back[-1].t_ns + 2 * SILENT_NS)
    assert again.kind == "stream.silent"


def test_a_client_that_reads_nothing_makes_no_silence() -> None:
    events = stream(STEADY)
    slow = [SILENT_NS]
    stall = Stall(lambda _from, _to: Surroundings(slow[0]))
    found(events, stall)
    assert stall.tick(events[-1].t_ns + SILENT_NS + 1) == []
    slow[0] = SILENT_NS // 3
    assert [f.kind for f in stall.tick(events[-1].t_ns + SILENT_NS + 1)] == ["stream.silent"]


def test_a_client_that_did_not_read_explains_what_then_came_at_once() -> None:
    (finding,) = found(stream([*STEADY, 2000 * MS, *[0] * 125, *STEADY]), Stall(around(client_slow_ns=1990 * MS)))
    assert finding.evidence["cause"] == "slow_client"
    assert finding.evidence["delivered_at_once"] == 126
    assert "also_suspected" not in finding.evidence


def test_before_the_first_byte_and_after_the_last_there_is_no_silence() -> None:
    stall = Stall()
    assert stall.tick(10**12) == []
    assert found([HostSample(ns(10**12))], stall) == []
    events = stream(STEADY)
    stall = Stall()
    found([*events, Cut(events[-1].t_ns, "upstream_truncated")], stall)
    assert stall.tick(10**13) == []


def test_records_without_payload_are_no_silence() -> None:
    events = stream(STEADY)
    t = events[-1].t_ns
    empties = [EmptyRecord(ns(t + i * 400 * MS)) for i in range(1, 200)]
    stall = Stall()
    assert found([*events, *empties, Usage(ns(empties[-1].t_ns))], stall) == []
    assert stall.tick(empties[-1].t_ns + 100 * MS) == []


def test_the_gap_across_lost_bytes_is_not_judged() -> None:
    events = stream([*STEADY, 5_000 * MS, *STEADY])
    events.insert(42, Missed(events[42].t_ns, 1000))
    assert found(events) == []


def test_many_stalls_are_few_findings() -> None:
    rng = random.Random(2)
    findings = found(stream([x for _ in range(60) for x in (*[GAP] * rng.randint(20, 60), 150 * MS)] + STEADY))
    assert len(findings) == 16
    assert findings[-1].evidence["further"] == 44


def test_thinking_counts_like_text() -> None:
    events = stream([*STEADY, 90 * MS, *STEADY])
    (finding,) = found(ThinkingDelta(event.t_ns, "x") if isinstance(event, TextDelta) else event for event in events)
    assert finding.chunk == 41


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 100 * MS), st.integers(-5 * MS, 60 * 10**9)), max_size=200), st.booleans())
def test_it_never_raises(gaps: list[int], server: bool) -> None:
    events = stream(gaps, gaps if server else None)
    stall = Stall(around(client_slow_ns=1, started=("x",)))
    found([*events, HostSample(events[-1].t_ns, pressure=1.0), end(events)], stall)
    stall.tick(1 << 62)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.one_of(st.just(GAP), st.integers(10 * MS, 30 * MS), st.integers(0, 900 * MS)), min_size=1, max_size=200),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.booleans(),
)
def test_several_at_once_are_judged_as_one_by_one(gaps: list[int], sizes: list[int], server: bool) -> None:
    events = stream(gaps, gaps if server else None)
    deltas = [event for event in events if isinstance(event, TextDelta)]
    together, told = Stall(), found(events[:1])
    together.see(events[0])
    at = 0
    while at < len(deltas):
        run = deltas[at : at + sizes[at % len(sizes)]]
        stamps = [str(delta.server_ns) for delta in run] if server else None
        told += together.deltas(Deltas(TextDelta, [d.t_ns for d in run], [d.text for d in run], stamps, int))
        at += len(run)
    told += together.see(end(events))
    assert told == found([*events, end(events)])
