from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import (
    Began,
    Cut,
    EmptyRecord,
    Event,
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
from qm_proxy.measure.series import unpack
from qm_proxy.measure.timeline import Timeline, Timing

MS = 1_000_000
T0 = 50_000 * MS


def at(ms: float) -> Nanoseconds:
    return Nanoseconds(T0 + int(ms * MS))


def text(ms: float) -> TextDelta:
    return TextDelta(at(ms), "x")


def begun(*, asked: float = 2, head: float = 1, streamed: bool = True) -> Timeline:
    timeline = Timeline(T0, streamed=streamed)
    timeline.head_ns, timeline.asked_ns = at(head), at(asked)
    return timeline


def fed(timeline: Timeline, events: list[Event], *, end: float) -> Timeline:
    for event in events:
        if timeline.answered_ns is None:
            timeline.answered_ns = event.t_ns
        timeline.written(event.t_ns, 30_000)
        timeline.see(event)
    timeline.over(at(end))
    return timeline


def rows(timing: Timing) -> float:
    found = (timing.queue_s, timing.load_s, timing.prefill_s, timing.decode_s, timing.client_wait_s, timing.unexplained_s)
    return math.fsum(row or 0.0 for row in found)


def test_a_native_stream() -> None:
    events: list[Event] = [Began(at(500), "m", None), *(text(500 + 20 * i) for i in range(11)), EmptyRecord(at(705))]
    events += [
        Usage(at(720), 40, 12, total_ns=718 * MS, load_ns=100 * MS, prefill_ns=398 * MS, decode_ns=215 * MS),
        Finished(at(720), "stop"),
    ]
    timing = fed(begun(), events, end=721).timing(start_unix_ns=9)
    assert (timing.ttft_s, timing.ttft_content_s) == (0.5, 0.5)
    assert (timing.load_s, timing.prefill_s, timing.decode_s, timing.queue_s) == (0.099, 0.398, 0.215, 0.0)
    assert timing.client_wait_s == 0.002
    assert timing.total_s == 0.721
    assert rows(timing) == pytest.approx(timing.total_s, abs=1e-9)
    assert timing.tokens_per_s == pytest.approx(12 / 0.215)
    assert timing.rate_source == "server"
    assert timing.itl is not None
    assert (timing.itl.n, timing.itl.mean_s, timing.itl.p50_s, timing.itl.max_s) == (10, 0.02, 0.02, 0.02)
    assert (timing.chunks, timing.output_tokens, timing.withheld_tokens) == (11, 12, 1)
    assert (timing.proxy_overhead_s, timing.written_lag_s) == (30e-6, 30e-6)
    assert timing.slow_because is None
    assert timing.doubts == []
    assert timing.series is not None
    assert timing.series.start_unix_ns == 9
    assert unpack(timing.series.arrival)[0] == 500 * MS


def test_thinking_then_text_then_a_call() -> None:
    events: list[Event] = [ThinkingDelta(at(300 + 10 * i), "h") for i in range(4)]
    events += [text(400), text(410), ToolCall(at(410), 0, "1", "f", "{}")]
    timing = fed(begun(), events, end=420).timing(start_unix_ns=0)
    assert (timing.ttft_s, timing.ttft_content_s, timing.thinking_chunks, timing.chunks) == (0.3, 0.4, 4, 7)
    assert timing.series is not None
    assert timing.series.kinds == [("thinking", 4), ("text", 2), ("tool", 1)]
    assert list(timing.series.coalesced) == [6]
    assert timing.itl is not None
    assert timing.itl.n == 5  # the call came with the last text


def test_without_durations_the_rate_is_the_clients_and_the_wait_stays_whole() -> None:
    timing = fed(begun(), [*(text(1000 + 50 * i) for i in range(21)), Usage(at(2001), 9, 21)], end=2010).timing(start_unix_ns=0)
    assert (timing.tokens_per_s, timing.rate_source) == (20.0, "client")
    assert (timing.queue_s, timing.load_s, timing.prefill_s, timing.decode_s) == (None, None, None, 1.0)
    assert timing.unexplained_s == pytest.approx(1.008)
    assert rows(timing) == pytest.approx(timing.total_s, abs=1e-9)


def test_a_whole_answer_has_no_first_token_and_no_gaps() -> None:
    usage = Usage(at(900), 40, 12, total_ns=895 * MS, load_ns=100 * MS, prefill_ns=400 * MS, decode_ns=390 * MS)
    timing = fed(begun(streamed=False), [text(900), usage, Finished(at(900), "stop")], end=901).timing(start_unix_ns=0)
    assert (timing.ttft_s, timing.ttft_content_s, timing.itl, timing.withheld_tokens) == (None, None, None, None)
    assert timing.tokens_per_s == pytest.approx(12 / 0.39)
    assert timing.rate_source == "server"
    assert (timing.prefill_s, timing.queue_s, timing.chunks) == (0.4, 0.0, 1)
    assert rows(timing) == pytest.approx(timing.total_s, abs=1e-9)


def test_a_whole_answer_without_durations_knows_its_total() -> None:
    timing = fed(begun(streamed=False), [text(5000), Usage(at(5000), 4, 9)], end=5001).timing(start_unix_ns=0)
    assert (timing.tokens_per_s, timing.rate_source, timing.decode_s) == (None, None, None)
    assert timing.unexplained_s == pytest.approx(4.999)
    assert (timing.slow_because or "").startswith("5 s of 5 s passed before the whole answer came at once")


def test_queueing_is_told_with_the_company_that_was_there() -> None:
    usage = Usage(at(2165), 8, 20, total_ns=2160 * MS, load_ns=5 * MS, prefill_ns=9 * MS, decode_ns=699 * MS)
    events: list[Event] = [*(text(1466 + 35 * i) for i in range(20)), usage]
    timing = fed(begun(), events, end=2170).timing(start_unix_ns=0, model="tiny", others=1)
    assert timing.queue_s == pytest.approx(1.447, abs=1e-3)
    assert (timing.slow_because or "").endswith("for a free slot behind 1 other request for tiny.")


def test_stalls_are_counted_from_the_streams_own_pace() -> None:
    times = [500 + 20 * i + (700 if i >= 30 else 0) + (400 if i >= 60 else 0) for i in range(90)]
    timing = fed(begun(), [text(t) for t in times], end=times[-1] + 1).timing(start_unix_ns=0)
    assert timing.slow_because == "The stream stalled 2 times and lost 1.1 s of 3.38 s; the longest was 720 ms before chunk 31."


def test_a_slow_client_is_told_from_a_slow_model() -> None:
    timeline = begun()
    timeline.answered_ns = at(100)
    for i in range(10):
        timeline.written(at(100 + 20 * i), 30_000)
        timeline.see(text(100 + 20 * i))
    timeline.written(at(300), None)
    timeline.see(text(300))
    timeline.client_slow(at(301))
    timeline.client_ready(at(3301))
    for i in range(10):
        timeline.written(at(3302 + 20 * i), 30_000)
        timeline.see(text(3302 + 20 * i))
    timeline.over(at(3500))
    timing = timeline.timing(start_unix_ns=0)
    assert timing.client_wait_s == pytest.approx(3.002)
    assert timing.decode_s == pytest.approx(0.382)
    assert timing.itl is not None
    assert timing.itl.max_s == 0.02
    assert timing.written_lag_s == pytest.approx(3.001)
    assert timing.proxy_overhead_s == 30e-6
    assert timing.slow_because == "The client did not take the answer for 3 s of 3.5 s; the model was not the brake."
    assert any("left out" in doubt for doubt in timing.doubts)
    assert rows(timing) == pytest.approx(timing.total_s, abs=1e-9)


def test_the_end_is_when_the_client_has_taken_the_answer() -> None:
    timeline = begun()
    timeline.written(at(100), None)
    timeline.see(text(100))
    timeline.client_slow(at(101))
    assert timeline.awaits_client
    timeline.client_ready(at(901))
    timeline.over(at(110))
    assert timeline.timing(start_unix_ns=0).total_s == 0.901


def test_a_sleep_is_marked_and_not_measured() -> None:
    timeline = begun()
    for ms in (100, 120, 140):
        timeline.see(text(ms))
    timeline.suspended()
    timeline.suspended()
    for ms in (9000, 9020):
        timeline.see(text(ms))
    timeline.over(at(9030))
    timing = timeline.timing(start_unix_ns=0)
    assert timing.itl is not None
    assert (timing.itl.n, timing.itl.max_s) == (3, 0.02)
    assert timing.series is not None
    assert timing.series.suspended == [3]
    assert any("slept" in doubt for doubt in timing.doubts)


def test_counts_that_disagree_are_shown() -> None:
    held = fed(begun(), [*(text(i) for i in range(100, 110)), Usage(at(110), 3, 40)], end=111).timing(start_unix_ns=0)
    assert held.withheld_tokens == 30
    assert held.doubts == [
        "30 of 40 tokens came in no chunk of their own (held back or merged by the server): gaps between chunks are not gaps"
        " between tokens."
    ]
    twice = fed(begun(), [*(text(i) for i in range(100, 110)), Usage(at(110), 3, 4)], end=111).timing(start_unix_ns=0)
    assert twice.withheld_tokens == -6
    assert twice.doubts == ["10 chunks came, and the server counts only 4 tokens."]
    slow = fed(
        begun(),
        [*(text(100 + 40 * i) for i in range(100)), Usage(at(4061), 3, 101, prefill_ns=MS, decode_ns=2000 * MS)],
        end=4062,
    ).timing(start_unix_ns=0)
    assert slow.doubts == ["The server counts 19.8 ms per token, the wire shows 40 ms per chunk."]
    liar = fed(begun(), [text(100), Usage(at(110), 3, 1, prefill_ns=5000 * MS)], end=111).timing(start_unix_ns=0)
    assert liar.prefill_s == pytest.approx(0.109)
    assert [doubt[:32] for doubt in liar.doubts] == ["The server's durations exceed th"]


def test_what_was_not_copied_is_said_and_nothing_is_compared() -> None:
    timing = fed(begun(), [text(100), Missed(at(110), 4096), text(120), Usage(at(130), 3, 40)], end=131).timing(start_unix_ns=0)
    assert (timing.withheld_tokens, timing.itl) == (None, None)
    assert any("4,096 bytes" in doubt for doubt in timing.doubts)


def test_later_usage_replaces_earlier_and_an_estimate_nothing() -> None:
    events: list[Event] = [
        Usage(at(100), 900, 1, estimated=True),
        text(100),
        Usage(at(110), 120, 7),
        Usage(at(111), None, 8, cached_tokens=3),
        Usage(at(112), 5000, estimated=True),
    ]
    timing = fed(begun(), events, end=120).timing(start_unix_ns=0)
    assert (timing.input_tokens, timing.output_tokens, timing.cached_tokens) == (120, 8, 3)
    only = fed(begun(), [Usage(at(100), 900, 1, estimated=True), text(100)], end=120).timing(start_unix_ns=0)
    assert (only.input_tokens, only.output_tokens) == (None, None)
    refused = fed(begun(), [Failed(at(100), 400, "too long", None, 701, 512)], end=120).timing(start_unix_ns=0)
    assert refused.input_tokens == 701


def test_an_upload_that_never_ended_is_the_clients_time() -> None:
    timeline = Timeline(T0)
    timeline.head_ns = at(1)
    timeline.over(at(4000))
    timing = timeline.timing(start_unix_ns=0, bytes_in=3_000_000)
    assert timing.client_wait_s == 4.0
    assert timing.slow_because == "The client took 4 s of 4 s to send its request of 3.0 MB."
    assert (timing.chunks, timing.series, timing.ttft_s, timing.tokens_per_s) == (0, None, None, None)


def test_a_load_reply_is_no_token() -> None:
    timeline = fed(begun(streamed=False), [EmptyRecord(at(2900)), Finished(at(2900), "load")], end=2901)
    timing = timeline.timing(start_unix_ns=0, model="m")
    assert (timing.ttft_s, timing.chunks) == (None, 0)
    assert timing.slow_because == "The request only loaded m, which took 2.9 s of 2.9 s."


def test_the_numbers_come_after_the_end() -> None:
    with pytest.raises(ValueError, match="over"):
        begun().timing(start_unix_ns=0)


TIMES = st.integers(0, 10_000)
DURATION = st.one_of(st.none(), st.integers(-1, 20_000 * MS))
EVENTS = st.lists(
    st.one_of(
        st.builds(text, TIMES),
        st.builds(lambda ms: ThinkingDelta(at(ms), "h"), TIMES),
        st.builds(lambda ms, whole: ToolCall(at(ms), 0, "", "f", "{}", whole=whole), TIMES, st.booleans()),
        st.builds(lambda ms: EmptyRecord(at(ms)), TIMES),
        st.builds(lambda ms, n: Missed(at(ms), n), TIMES, st.integers(0, 9)),
        st.builds(lambda ms: Malformed(at(ms), "?"), TIMES),
        st.builds(lambda ms: Cut(at(ms), "upstream_truncated"), TIMES),
        st.builds(lambda ms: Finished(at(ms), "stop"), TIMES),
        st.builds(
            lambda ms, counts, ns: Usage(at(ms), counts[0], counts[1], counts[2], ns[0], ns[1], ns[2], ns[3]),
            TIMES,
            st.tuples(*[st.one_of(st.none(), st.integers(0, 50))] * 3),
            st.tuples(*[DURATION] * 4),
        ),
    ),
    max_size=30,
)


@given(
    EVENTS,
    st.lists(st.tuples(TIMES, st.sampled_from(["slow", "ready", "sleep"])), max_size=5),
    st.tuples(*[st.one_of(st.none(), st.integers(-5, 12_000))] * 3),
    st.integers(-5, 12_000),
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)
def test_rows_add_up_whatever_happens(
    events: list[Event],
    others: list[tuple[int, str]],
    marks: tuple[int | None, int | None, int | None],
    end: int,
    streamed: bool,
    company: int | None,
) -> None:
    timeline = Timeline(T0, streamed=streamed)
    timeline.head_ns, timeline.asked_ns, timeline.answered_ns = (None if ms is None else at(ms) for ms in marks)
    happened: list[tuple[int, Event | str]] = [(event.t_ns, event) for event in events]
    happened += [(at(ms), what) for ms, what in others]
    for i, (t_ns, what) in enumerate(sorted(happened, key=lambda pair: pair[0])):
        if what == "slow":
            timeline.client_slow(t_ns)
        elif what == "ready":
            timeline.client_ready(t_ns)
        elif what == "sleep":
            timeline.suspended()
        elif not isinstance(what, str):
            timeline.written(t_ns, None if i % 5 == 4 else 1000 * i)
            timeline.see(what)
    timeline.over(at(end))
    timing = timeline.timing(start_unix_ns=0, others=company)
    assert rows(timing) == pytest.approx(timing.total_s, abs=1e-9)
    assert timing.total_s >= 0
    assert timing.chunks == timeline.n
    numbers = (timing.ttft_s, timing.queue_s, timing.load_s, timing.prefill_s, timing.decode_s, timing.client_wait_s)
    assert all(number is None or number >= 0 for number in (*numbers, timing.unexplained_s, timing.tokens_per_s))
    assert timing.itl is None or timing.itl.p50_s <= timing.itl.p90_s <= timing.itl.p99_s <= timing.itl.max_s
