"""Planted stalls are all found, ordinary jitter is not flagged, and a cause is named only with its evidence."""

from __future__ import annotations

import math
import random

import pytest

from probes.ask import Answer
from probes.inspector.spikes import bursts, counted, expected_false, explain, flagged, legacy_threshold, spread, stream_of
from qm_proxy.events import HostSample, Nanoseconds, TextDelta

MS = 1_000_000


def answer(gaps_ms: list[float], server_ms: list[float] | None = None, key: str = "s") -> Answer:
    at = server = 10**12
    events = [TextDelta(Nanoseconds(at), "a", server)]
    for index, gap in enumerate(gaps_ms):
        at += int(gap * MS)
        server += int((server_ms or gaps_ms)[index] * MS)
        events.append(TextDelta(Nanoseconds(at), "a", server))
    return Answer(key, started_ns=10**12 - 50 * MS, ended_ns=at, status=200, events=list(events))


def jitter(kind: str, draw: random.Random, n: int) -> list[float]:
    if kind == "lognormal 5 %":
        return [16.5 * math.exp(draw.gauss(0, 0.05)) for _ in range(n)]
    if kind == "lognormal 15 %":
        return [16.5 * math.exp(draw.gauss(0, 0.15)) for _ in range(n)]
    if kind == "gamma":
        return [12 + draw.gammavariate(1.5, 3.0) for _ in range(n)]
    if kind == "drift":
        return [16.5 * (1 + 0.25 * i / n) * math.exp(draw.gauss(0, 0.05)) for i in range(n)]
    return [float(round(16.5 * math.exp(draw.gauss(0, 0.03)))) for _ in range(n)]


@pytest.mark.parametrize("kind", ["lognormal 5 %", "lognormal 15 %", "gamma", "drift", "whole ms"])
def test_ordinary_jitter_is_flagged_less_than_once_in_a_thousand(kind: str) -> None:
    draw = random.Random(kind)
    flags = sum(len(flagged(jitter(kind, draw, 256))) for _ in range(40))
    assert flags / (40 * 253) <= 0.001


@pytest.mark.parametrize("kind", ["lognormal 5 %", "lognormal 15 %", "drift", "whole ms"])
def test_every_stall_of_fifty_ms_is_found(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(40):
        gaps = jitter(kind, draw, 256)
        places = sorted(draw.sample(range(3, 256), 3))
        for place in places:
            gaps[place] += 50
        assert [index for index, _ in flagged(gaps)] == places


def test_the_first_gaps_and_short_streams_are_left_out() -> None:
    assert flagged([500.0, *[16.0] * 50]) == []
    assert flagged([16.0] * 7) == []
    assert spread([]) == []


def test_coalesced_reads_are_spread_and_not_stalls() -> None:
    draw = random.Random(4)
    gaps = jitter("lognormal 5 %", draw, 300)
    for place in range(10, 290, 40):
        gaps[place + 1] += gaps[place]
        gaps[place], gaps[place + 1] = gaps[place + 1], 0.0
    assert flagged(gaps) == []
    assert sum(spread(gaps)) == pytest.approx(sum(gaps))


def test_speculative_bursts_are_told_and_only_the_gaps_between_them_judged() -> None:
    gaps = [gap for _ in range(80) for gap in (48.0, 0.05, 0.05)]
    found = bursts(gaps)
    assert found is not None
    assert found["tokens_per_burst"] == pytest.approx(3.0, abs=0.05)
    assert found["burst_period_ms"] == pytest.approx(48.1, abs=0.1)
    assert flagged(gaps) == []
    gaps[120] += 90.0
    assert [index for index, _ in flagged(gaps)] == [120]
    assert bursts([16.0] * 5) is None


def test_expected_false_alarms_are_few_on_a_quiet_stream_and_ignore_the_real_ones() -> None:
    draw = random.Random(6)
    gaps = jitter("lognormal 5 %", draw, 300)
    gaps[100] += 200
    assert expected_false([stream_of(answer(gaps))], 1) < 0.2


def test_a_busy_client_is_seen_through_the_servers_stamps() -> None:
    server = [16.0] * 200
    server[90] = 120.0
    joined = [gap for pair in range(100) for gap in (server[2 * pair] + server[2 * pair + 1], 0.0)]
    stream = stream_of(answer(joined, server))
    assert stream.judged_ms == pytest.approx(server, abs=1e-5)
    assert [index for index, _ in flagged(stream.judged_ms)] == [90]


def test_causes() -> None:
    quiet = [16.0] * 120
    client_only = [*quiet[:60], 90.0, *quiet[61:]]
    assert explain([stream_of(answer(client_only, quiet))])[0].cause == "client or network"
    both = stream_of(answer(client_only))
    assert explain([both])[0].cause == "server"
    repeated = explain([both, stream_of(answer(client_only, key="t"))])
    assert {spike.cause for spike in repeated} == {"deterministic"}
    regular = [90.0 if index % 30 == 29 else 16.0 for index in range(120)]
    assert {spike.cause for spike in explain([stream_of(answer(regular))])} == {"periodic"}
    swapping = answer(client_only)
    swapping.host = [HostSample(Nanoseconds(swapping.chunks[60].t_ns), swap_in_per_s=5e6)]
    spike = explain([stream_of(swapping)])[0]
    assert (spike.cause, spike.server_side, spike.chunk) == ("host pressure", True, 61)
    assert "swapped in 5.0 MB/s" in spike.evidence


def paused(made: Answer, chunk: int, ms: float) -> Answer:
    """As if the probe had stood still for the last `ms` before that chunk was read."""
    read = made.chunks[chunk].t_ns
    made.pauses = [(read - int(ms * MS), read)]
    return made


def test_a_gap_that_only_our_own_pause_made_long_is_shown_and_not_counted() -> None:
    quiet = [16.0] * 120
    late = [*quiet[:60], 90.0, *quiet[61:]]
    spike = explain([stream_of(paused(answer(late, quiet), 61, 74))])[0]
    assert (spike.cause, spike.counted, spike.client_pause_ms) == ("this client", False, 74)
    assert counted(stream_of(paused(answer(late, quiet), 61, 74))) == set()
    machine = explain([stream_of(paused(answer(late), 61, 74))])[0]
    assert (machine.cause, machine.counted, machine.server_side) == ("host pressure", False, True)
    assert "whole machine" in machine.evidence


def test_a_stall_stays_one_when_we_paused_for_a_part_of_it_or_the_server_is_elsewhere() -> None:
    late = [*[16.0] * 60, 120.0, *[16.0] * 60]
    partly = explain([stream_of(paused(answer(late), 61, 40))])[0]
    assert (partly.cause, partly.counted) == ("server", True)
    elsewhere = explain([stream_of(paused(answer(late), 61, 110))], same_machine=False)[0]
    assert (elsewhere.cause, elsewhere.counted) == ("server", True)


def test_without_server_stamps_no_cause_is_invented() -> None:
    made = answer([*[16.0] * 60, 90.0, *[16.0] * 60])
    for event in made.events:
        event.server_ns = None  # type: ignore[union-attr, misc]
    spike = explain([stream_of(made)])[0]
    assert (spike.cause, spike.server_side) == ("unexplained", None)


def test_the_origins_rule() -> None:
    assert legacy_threshold([16, 17, 16, 17, 16, 17, 16]) == float("inf") or legacy_threshold([16, 17, 16, 17]) > 17
    assert legacy_threshold([10, 12, 14, 16, 18]) == pytest.approx(14 + 3.5 / 0.6745 * 2)
    assert legacy_threshold([16, 16, 16, 16, 50]) == pytest.approx(22.8 + 2 * 13.6)
    assert legacy_threshold([16]) == float("inf")
    assert legacy_threshold([16, 16, 16]) == float("inf")
