"""Latency spikes: gaps that are statistically odd, long enough to see, and at least twice the local pace.

Rule, per stream, on gaps in ms with coalesced runs spread out: window of 65 centred gaps, the first 3 dropped,
m = rolling median, d = max(rolling MAD, half the global MAD); a spike is g > m + max(8 * 1.4826 d, 10 ms, 1.0 m).
On spike-free streams it flags 0 to 0.2 of 1 000 gaps (lognormal, Student-t, drift, coalescing, whole-ms stamps) and 0.8 with a
heavy gamma tail; the origin's global rule flags 0 to 24 (benchmarks/bench_spikes.py). `expected_false` measures it on the
stream at hand.
A cause is named only when its test says so. A gap that is no spike without the time in which the probe itself was not let run
(`Answer.pauses`) is shown but not counted: it is this client's doing, or the whole machine's, and never the model's.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probes.ask import Answer, Chunk
from probes.result import Spike
from probes.stats.robust import MAD_TO_SIGMA, mad, median, rolling

__all__ = ["RULE", "Stream", "bursts", "counted", "expected_false", "explain", "flagged", "legacy_threshold", "stream_of"]

Cause = Literal["server", "client or network", "this client", "deterministic", "periodic", "host pressure", "unexplained"]
RULE = (
    "gap > m + max(8 x 1.4826 x MAD, 10 ms, 1.0 x m); m, MAD over 65 gaps around; first 3 gaps dropped; coalesced runs spread; "
    "the probe's own pauses taken off"
)
WINDOW = 65
DROPPED = 3
FLOOR_MS = 10.0
_NEAR_ZERO = 0.25
_BURSTY = 0.20


@dataclass(slots=True)
class Stream:
    """The chunks of one answer, as gaps. `gaps_ms[i]` lies before chunk i + 1."""

    request: str
    answer: Answer
    chunks: list[Chunk]
    gaps_ms: list[float]
    server_gaps_ms: list[float] | None
    coalesced: int  # chunks that came in the same read as the one before
    depth_tokens: int = 0

    def paused_ms(self, index: int) -> float:
        """How long the probe itself was not let run in gap `index`."""
        return self.answer.paused_ms(self.chunks[index].t_ns, self.chunks[index + 1].t_ns)

    @property
    def by_server(self) -> bool:
        """Were reads so often joined on the way (a busy client) that only the server's own stamps still show the pace?"""
        return self.server_gaps_ms is not None and bursts(self.gaps_ms) is not None and bursts(self.server_gaps_ms) is None

    @property
    def judged_ms(self) -> list[float]:
        """The gaps that spikes are looked for in: our clock's, unless it tells nothing any more."""
        return self.server_gaps_ms if self.server_gaps_ms is not None and self.by_server else self.gaps_ms


def stream_of(answer: Answer, depth_tokens: int = 0) -> Stream:
    """Take the gaps of an answer on both clocks."""
    chunks = answer.chunks
    pairs = list(itertools.pairwise(chunks))
    gaps = [(after.t_ns - before.t_ns) / 1e6 for before, after in pairs]
    stamps = [chunk.server_ns for chunk in chunks]
    known = [stamp for stamp in stamps if stamp is not None]
    server = [(after - before) / 1e6 for before, after in itertools.pairwise(known)] if len(known) == len(stamps) else None
    return Stream(answer.key, answer, chunks, gaps, server, sum(gap == 0 for gap in gaps), depth_tokens)


def spread(gaps_ms: Sequence[float]) -> list[float]:
    """Share a gap with the near-zero gaps that follow it: the network or the server joined what was made one by one."""
    if not gaps_ms:
        return []
    near_zero = _NEAR_ZERO * median(gaps_ms)
    made = list(gaps_ms)
    index = 0
    while index < len(made):
        end = index + 1
        while end < len(made) and gaps_ms[end] < near_zero:
            end += 1
        if end - index > 1 and gaps_ms[index] >= near_zero:
            share = sum(gaps_ms[index:end]) / (end - index)
            made[index:end] = [share] * (end - index)
        index = end
    return made


def bursts(gaps_ms: Sequence[float]) -> dict[str, float] | None:
    """Statistics of a stream that comes in bursts (speculative decoding, reads joined on the way); `None` for any other."""
    if len(gaps_ms) < 8:
        return None
    limit = _NEAR_ZERO * _pace(gaps_ms)
    tiny = [gap < limit for gap in gaps_ms]
    if sum(tiny) <= _BURSTY * len(gaps_ms):
        return None
    lengths, periods, length, period = [], [], 1, 0.0
    for gap, is_tiny in zip(gaps_ms, tiny, strict=True):
        if is_tiny:
            length += 1
            period += gap
        else:
            lengths.append(length)
            periods.append(period + gap)
            length, period = 1, 0.0
    if not lengths:
        return None
    return {
        "tokens_per_burst": sum(lengths) / len(lengths),
        "burst_period_ms": median(periods),
        "share_near_zero": sum(tiny) / len(tiny),
    }


def flagged(gaps_ms: Sequence[float]) -> list[tuple[int, float]]:
    """(index of the gap, its threshold in ms) of each spike of one stream. Of a bursty stream only the gaps between bursts are
    judged: a step of speculative decoding takes its time however many tokens it yields."""
    if len(gaps_ms) < 8:
        return []
    if bursts(gaps_ms) is None:
        places = list(range(len(gaps_ms)))
        judged = spread(gaps_ms)
    else:
        limit = _NEAR_ZERO * _pace(gaps_ms)
        places = [index for index, gap in enumerate(gaps_ms) if gap >= limit]
        judged = [gaps_ms[index] for index in places]
    places, judged = places[DROPPED:], judged[DROPPED:]
    if not judged:
        return []
    general = mad(judged)
    found = []
    for index, gap, local in zip(places, judged, rolling(judged, WINDOW), strict=True):
        threshold = local.median + max(8 * MAD_TO_SIGMA * max(local.mad, 0.5 * general), FLOOR_MS, local.median)
        if gap > threshold:
            found.append((index, threshold))
    return found


def _pace(gaps_ms: Sequence[float]) -> float:
    """Time of a token, also where most gaps are near zero."""
    return max(sum(gaps_ms) / len(gaps_ms), median(gaps_ms))


def expected_false(streams: Sequence[Stream], seed: int, rounds: int = 20) -> float:
    """Spikes that the rule finds in these streams when their unflagged gaps are shuffled: chance alone, for as many gaps."""
    draw = random.Random(seed)
    total = 0.0
    for stream in streams:
        if bursts(stream.judged_ms) is not None:
            continue  # shuffling would tear the bursts apart
        hit = {index for index, _ in flagged(stream.judged_ms)}
        ordinary = [gap for index, gap in enumerate(spread(stream.judged_ms)) if index not in hit]
        if len(ordinary) < 8:
            continue
        found = 0
        for _ in range(rounds):
            draw.shuffle(ordinary)
            found += len(flagged(ordinary))
        total += found / rounds
    return total


def legacy_threshold(gaps_ms: Sequence[int]) -> float:
    """The origin's rule on whole-ms gaps: median + (3.5 / 0.6745) MAD, or mean + 2 population sigma where MAD is 0."""
    if len(gaps_ms) < 2:
        return float("inf")
    middle = median(gaps_ms)
    deviation = mad(gaps_ms, middle)
    if deviation > 0:
        return middle + 3.5 / 0.6745 * deviation
    mean = sum(gaps_ms) / len(gaps_ms)
    sigma = (sum((gap - mean) ** 2 for gap in gaps_ms) / len(gaps_ms)) ** 0.5
    return mean + 2 * sigma if sigma > 0 else float("inf")


def counted(stream: Stream, *, same_machine: bool = True) -> set[int]:
    """The gaps of a stream that are spikes: flagged, and not by the probe's own pauses."""
    pace = median(stream.judged_ms) if stream.judged_ms else 0.0
    return {index for index, limit in flagged(stream.judged_ms) if not _our_own(stream, index, limit, pace, same_machine)}


def explain(streams: Sequence[Stream], *, same_machine: bool = True) -> list[Spike]:
    """Every flagged gap of these streams with the evidence for its cause. The tests, in order: did the probe itself stand still;
    is it in the server's stamps too; does the machine show pressure at that moment; is the place the same in other streams;
    is the spacing regular. `same_machine`: the server runs here, so that a pause of the probe may be the server's as well."""
    found = {stream.request: flagged(stream.judged_ms) for stream in streams}
    made = []
    for stream in streams:
        pace = median(stream.judged_ms) if stream.judged_ms else 0.0
        own = {index for index, threshold in found[stream.request] if _our_own(stream, index, threshold, pace, same_machine)}
        places = [index for index, _ in found[stream.request] if index not in own]
        period = _period(places)
        for index, threshold in found[stream.request]:
            gap = stream.judged_ms[index]
            server_side = _server_side(stream, index, pace)
            if index in own:
                cause, evidence = _paused(stream, index, gap, server_side)
            else:
                elsewhere = [
                    other.request
                    for other in streams
                    if other is not stream and any(abs(place - index) <= 1 for place, _ in found[other.request])
                ]
                cause, evidence = _cause(stream, index, server_side, elsewhere, period)
            made.append(
                Spike(
                    request=stream.request,
                    chunk=index + 1,
                    t_ms=(stream.chunks[index + 1].t_ns - stream.answer.started_ns) / 1e6,
                    gap_ms=gap,
                    threshold_ms=threshold,
                    server_side=server_side,
                    cause=cause,
                    evidence=evidence,
                    client_pause_ms=round(stream.paused_ms(index), 3),
                    counted=index not in own,
                )
            )
    return made


def _server_side(stream: Stream, index: int, pace: float) -> bool | None:
    """Is more than half of what this gap has beyond the pace in the server's own stamps?"""
    if stream.server_gaps_ms is None:
        return None
    return stream.server_gaps_ms[index] - pace > (stream.judged_ms[index] - pace) / 2


def _our_own(stream: Stream, index: int, threshold: float, pace: float, same_machine: bool) -> bool:
    """Would the gap be no spike but for the probe's own pause? A stall that another machine's stamps show is not explained
    by a pause here, whatever coincided."""
    if stream.by_server or (not same_machine and _server_side(stream, index, pace)):
        return False
    return stream.judged_ms[index] - stream.paused_ms(index) <= threshold


def _paused(stream: Stream, index: int, gap: float, server_side: bool | None) -> tuple[Cause, str]:
    stood = f"this probe was not let run for {stream.paused_ms(index):.0f} of these {gap:.0f} ms"
    if server_side:
        return "host pressure", f"{stood}, and the server's stamps show the gap too: the whole machine paused; not counted"
    return "this client", f"{stood}; not counted"


def _cause(stream: Stream, index: int, server_side: bool | None, elsewhere: list[str], period: int | None) -> tuple[Cause, str]:
    if server_side is False:
        return "client or network", "the server's own stamps show no gap here, and this probe ran on time"
    pressed = _pressure(stream.answer, stream.chunks[index].t_ns, stream.chunks[index + 1].t_ns)
    if pressed:
        return "host pressure", pressed
    if elsewhere:
        return "deterministic", f"at the same chunk in {len(elsewhere)} other stream(s), such as {elsewhere[0]}"
    if period is not None:
        return "periodic", f"every {period} chunks"
    if server_side is None:
        return "unexplained", "this server stamps no records; no test could name a cause"
    return "server", "also in the server's own stamps; neither repeated, periodic, nor beside host pressure"


def _period(places: Sequence[int]) -> int | None:
    """The common spacing of three or more spikes, to ± 1 chunk."""
    if len(places) < 3:
        return None
    spacings = [after - before for before, after in itertools.pairwise(places)]
    base = min(spacings)
    regular = base >= 4 and all(abs(spacing - base * round(spacing / base)) <= 1 for spacing in spacings)
    return base if regular else None


def _pressure(answer: Answer, start_ns: int, end_ns: int) -> str | None:
    """What the host samples around a gap show; one sample a second, so one before and one after count too."""
    for sample in answer.host:
        if start_ns - 1_000_000_000 <= sample.t_ns <= end_ns + 1_000_000_000:
            if sample.swap_in_per_s:
                return f"the machine swapped in {sample.swap_in_per_s / 1e6:.1f} MB/s"
            if sample.gpu_throttled:
                return "the GPU was throttled"
            if sample.cpu_throttled:
                return "the CPU was throttled"
            if sample.pressure is not None and sample.pressure > 0.10:
                return f"tasks waited for memory {sample.pressure:.0%} of the time"
    return None
