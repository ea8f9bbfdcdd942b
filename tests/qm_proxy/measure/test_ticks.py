from __future__ import annotations

import random
import sys
from itertools import groupby, pairwise
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import EmptyRecord, Event, Nanoseconds, TextDelta, ThinkingDelta, ToolArguments, ToolCall
from qm_proxy.measure import ticks as ticks_module
from qm_proxy.measure.series import RESOLUTION_NS, unpack, unpack_lags
from qm_proxy.measure.ticks import MAX_RUNS, Ticks

MS = 1_000_000
HALF = RESOLUTION_NS // 2


def chunk(letter: str, t_ns: int) -> Event:
    t = Nanoseconds(t_ns)
    match letter:
        case "t":
            return TextDelta(t, "x")
        case "h":
            return ThinkingDelta(t, "x")
        case "a":
            return ToolArguments(t, 0, "{")
        case "c":
            return ToolCall(t, 0, "", "f", "{}")
        case "w":
            return ToolCall(t, 0, "", "f", "{}", whole=False)
        case _:
            return EmptyRecord(t)


LABEL = {"t": "text", "h": "thinking", "a": "tool", "c": "tool"}


class Step(NamedTuple):
    """A read `wait` ns after the last, with its lag and the events it completed, then what else happened."""

    wait: int
    lag: int | None
    events: str
    then: str  # "" | "slow" | "ready" | "sleep" | "gap"


STEPS = st.lists(
    st.builds(
        Step,
        st.one_of(st.integers(1, 50 * MS), st.just(40_000_000_000)),
        st.one_of(st.none(), st.integers(0, 3 * MS)),
        st.text("tthacwe", max_size=4),
        st.sampled_from(["", "", "", "", "slow", "ready", "sleep", "gap"]),
    ),
    max_size=40,
)


def play(ticks: Ticks, steps: list[Step], start: int) -> int:
    now = start
    for step in steps:
        now += step.wait
        ticks.written(now, step.lag)
        for letter in step.events:
            ticks.see(chunk(letter, now))
        now += 1000
        if step.then == "slow":
            ticks.client_slow(now)
        elif step.then == "ready":
            ticks.client_ready(now)
        elif step.then == "sleep":
            ticks.suspended()
        elif step.then == "gap":
            ticks.interrupt()
    return now


class Plain(NamedTuple):
    arrivals: list[int]
    lags: list[int | None]
    waited: list[bool]
    labels: list[str]
    breaks: set[int]  # indices of chunks the gap before which is not measured
    slept: list[int]


def plainly(steps: list[Step], start: int) -> Plain:
    """The same without packing: every chunk looked at on its own."""
    found = Plain([], [], [], [], set(), [])
    now, slow = start, False
    open_: list[int] = []
    for step in steps:
        now += step.wait
        if step.lag is not None:
            for i in open_:
                found.lags[i], found.waited[i] = now + step.lag - found.arrivals[i], True
            open_ = []
        for letter in step.events:
            if letter in LABEL:
                if step.lag is None:
                    open_.append(len(found.arrivals))
                found.arrivals.append(now)
                found.lags.append(step.lag)
                found.waited.append(False)
                found.labels.append(LABEL[letter])
        now += 1000
        if step.then == "ready":
            for i in open_:
                found.lags[i], found.waited[i] = now - found.arrivals[i], True
            open_ = []
        if step.then in ("slow", "sleep", "gap"):
            found.breaks.add(len(found.arrivals))
        if step.then == "ready" and slow:
            found.breaks.add(len(found.arrivals))
        slow = step.then == "slow" or (slow and step.then != "ready")
        if step.then == "sleep" and len(found.arrivals) not in found.slept:
            found.slept.append(len(found.arrivals))
    return found


@pytest.mark.parametrize("block", [1, 3, 256])
@given(steps=STEPS, start=st.integers(0, 10**15))
def test_packing_in_blocks_gives_what_a_plain_look_gives(block: int, steps: list[Step], start: int) -> None:
    ticks = Ticks(start)
    with mock.patch.object(ticks_module, "_BLOCK", block):
        end = play(ticks, steps, start)
        ticks.close(end)
    plain = plainly(steps, start)
    chunks = ticks.chunks(0)
    assert ticks.n == len(plain.arrivals)
    if chunks is None:
        assert not plain.arrivals
        return
    assert all(abs(a - (b - start)) <= HALF for a, b in zip(unpack(chunks.arrival), plain.arrivals, strict=True))
    assert list(chunks.coalesced) == [i for i, (a, b) in enumerate(pairwise(plain.arrivals), 1) if a == b]
    assert chunks.kinds == [(label, len(list(group))) for label, group in groupby(plain.labels)]
    assert chunks.suspended == plain.slept
    assert chunks.written is not None
    for found, lag in zip(unpack_lags(chunks.written), plain.lags, strict=True):
        assert (found is None) == (lag is None)
        assert found is None or lag is None or abs(found - lag) <= HALF
    gaps = [b - a for i, (a, b) in enumerate(pairwise(plain.arrivals), 1) if b > a and i not in plain.breaks]
    assert (ticks.gaps.n, ticks.gaps.total) == (len(gaps), sum(gaps))
    assert ticks.gaps.greatest == max(gaps, default=0)
    if gaps:
        at = ticks.longest_at
        assert plain.arrivals[at] - plain.arrivals[at - 1] == max(gaps)
        assert at not in plain.breaks
    assert ticks.overheads.n == sum(lag is not None and not waited for lag, waited in zip(plain.lags, plain.waited, strict=True))
    assert ticks.longest_lag_ns == max((lag for lag in plain.lags if lag is not None), default=None)


def stream(n: int, *, per_read: int = 1, seed: int = 3, alternate: bool = False) -> Ticks:
    chance = random.Random(seed)
    ticks, now = Ticks(0), 400 * MS
    for i in range(n):
        if i % per_read == 0:
            now += int(16.6e6 * chance.lognormvariate(0, 0.1))
            ticks.written(now, chance.randrange(20_000, 90_000))
        ticks.see(chunk("th"[i % 2] if alternate else "t", now))
    return ticks


def held(ticks: Ticks) -> int:
    """Bytes of everything that grows with the stream."""
    own = (ticks._times, ticks._reads, ticks._read_lags, ticks._waited, ticks._waiting, ticks.kinds, ticks._suspended)
    total = sum(map(sys.getsizeof, own)) + 100 * len(ticks.kinds) + 32 * len({*map(id, ticks._times), *map(id, ticks._reads)})
    for part, names in (
        (ticks._arrivals, ("_codes", "_escapes")),
        (ticks._lags, ("_codes", "_escapes")),
        (ticks.gaps, ("_values", "_bins")),
        (ticks.overheads, ("_values",)),
    ):
        total += sum(sys.getsizeof(getattr(part, name)) for name in names)
    return total


@pytest.mark.parametrize("per_read", [1, 3, 700])
def test_a_live_stream_holds_few_bytes_a_token(per_read: int) -> None:
    empty = held(Ticks(0))
    for n in (300, 1_000, 2_048, 10_000):  # below, the block in the making weighs most: 4 KiB
        assert held(stream(n, per_read=per_read)) - empty <= 24 * n
    many = held(stream(50_000, per_read=per_read)) - empty
    assert many <= (12 if per_read == 700 else 6) * 50_000  # 700 to a read: most of it is the block in the making


def test_a_stream_that_alternates_without_end_stays_bounded() -> None:
    ticks = stream(3 * MAX_RUNS, alternate=True)
    ticks.close(10**15)
    assert len(ticks.kinds) == MAX_RUNS
    assert ticks.kinds[-1] == ("mixed", 2 * MAX_RUNS + 1)
    assert sum(n for _, n in ticks.kinds) == ticks.n


def test_a_client_that_never_takes_is_unknown_and_not_zero() -> None:
    ticks = Ticks(0)
    ticks.written(5, None)
    ticks.see(chunk("t", 5))
    assert ticks.awaits_client
    ticks.close(9)
    chunks = ticks.chunks(0)
    assert chunks is not None
    assert chunks.written is not None
    assert unpack_lags(chunks.written) == [None]
    assert ticks.longest_lag_ns is None
    assert ticks.overheads.quantile(0.5) is None


def test_a_chunk_of_a_read_that_nobody_told_of_is_unknown() -> None:
    ticks = Ticks(0)
    ticks.see(chunk("t", 1))
    ticks.written(5, 40_000)
    ticks.see(chunk("t", 5))
    ticks.see(chunk("t", 6))
    ticks.close(9)
    chunks = ticks.chunks(0)
    assert chunks is not None
    assert chunks.written is not None
    assert unpack_lags(chunks.written) == [None, 40_000, None]


def test_a_lag_beyond_what_the_relay_can_say_is_held_at_that() -> None:
    ticks = Ticks(0)
    ticks.written(5, 2**40)
    ticks.see(chunk("t", 5))
    ticks.close(9)
    assert ticks.longest_lag_ns == 2**32 - 2


def test_waiting_chunks_survive_the_packing_of_their_block() -> None:
    ticks, now = Ticks(0), 0
    for _ in range(1000):
        now += MS
        ticks.written(now, None)
        ticks.see(chunk("t", now))
    ticks.client_ready(2000 * MS)
    assert not ticks.awaits_client
    ticks.close(2000 * MS)
    chunks = ticks.chunks(0)
    assert chunks is not None
    assert chunks.written is not None
    assert unpack_lags(chunks.written) == [(2000 - i) * MS for i in range(1, 1001)]
    assert ticks.taken_ns == 2000 * MS


def test_without_a_word_about_writes_there_is_no_series_of_them() -> None:
    ticks = Ticks(0)
    for t in range(1, 600):
        ticks.see(chunk("t", t * MS))
    ticks.close(600 * MS)
    chunks = ticks.chunks(7)
    assert chunks is not None
    assert (chunks.written, chunks.start_unix_ns, chunks.n) == (None, 7, 599)


def test_reads_without_chunks_cost_no_memory() -> None:
    ticks = Ticks(0)
    for t in range(10_000):
        ticks.written(t, 5)
    assert held(ticks) < 4_000
    assert Ticks(0).chunks(0) is None


def test_pauses_between_chunks_are_told_from_pauses_at_the_ends() -> None:
    ticks = Ticks(0)
    ticks.client_slow(1)
    ticks.client_slow(2)
    ticks.client_ready(11)
    ticks.see(chunk("t", 20))
    ticks.client_slow(30)
    ticks.see(chunk("t", 31))
    ticks.client_ready(130)
    ticks.see(chunk("h", 140))
    assert ticks.thinking
    ticks.client_slow(150)
    ticks.client_ready(1150)
    ticks.close(2000)
    assert ticks.paused_ns == 10 + 100 + 1000
    assert ticks.inner_pause_ns == 100
    assert ticks.gaps.n == 0
    assert ticks.span_ns == 120
