"""Flags an inter-token gap far above its recent neighbours, and a stream that has fallen silent. Suspects a cause, never more.

Rules that hold here:

- The rule (research/probes.md 2.4, with a window of values that have passed): a gap is a stall if it exceeds
  `median + max(8 × 1.4826 × MAD, 10 ms, 1.25 × median)` of the 64 gaps before it: statistically odd, long enough to see, and more
  than twice the local pace. The MAD counts at least 0.8 of what it has been in this stream so far.
- Chunks that follow in the same instant (one read, a burst) account for a part of the gap before them, a median each: it is
  judged when the next chunk that is not one of them arrives. Of a stream in which a fifth of the gaps are such (speculative
  decoding) only pauses are told that are three times its longest one, and 0.25 s at least.
- What a whole tool call's arguments would have taken to write is no stall: the server holds it back until it is complete.
- A cause is suspected from what was given as evidence, in the order of `_suspects`; with none it is "unexplained".
- Silence (`stream.silent`) needs time to pass without bytes: any event from beside the wire tells the time, and so does `tick`.

Findings of stalls may still change while the stream runs: a host sample that arrives a moment later may explain one, and
`evidence["further"]` of the last counts those beyond `_MOST`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from operator import sub
from typing import NamedTuple

from qm_proxy.events import (
    Began,
    Cut,
    Deltas,
    EmptyRecord,
    Event,
    Failed,
    Finished,
    HostSample,
    Malformed,
    Missed,
    Residency,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolCall,
    Usage,
)
from qm_proxy.findings import Finding, Severity
from qm_proxy.measure.quantiles import SIGMA, Trailing

__all__ = ["FALSE_PER_1000_GAPS", "SILENT_NS", "Stall", "Surroundings"]

FALSE_PER_1000_GAPS = 0.1
"""Upper bound of the rate measured on ordinary jitter (benchmarks/detect: log-normal to 15 %, gamma, t, drift, joined reads)."""
SILENT_NS = 30_000_000_000

_WINDOW = 64
_WARM = 12  # gaps before the rule is trusted; until then only what is ten times the median and 0.25 s
_PACE = 16  # gaps after which the pace is worked out anew
_SKIP = 3  # first gaps of a stream: engines start unevenly
_SIGMAS = 8
_MEDIANS = 1.25
_MAD_FLOOR = 0.8
_LEAST_NS = 10_000_000
_BURST_SHARE = 0.2
_LONG_NS = 250_000_000
_HELD_NS = 100_000_000  # a burst behind a pause of this length and eight medians was held back somewhere
_AGAIN_NS = 2_500_000_000  # host samples this close to a stall are evidence for it
_MOST = 16  # stalls told of one stream
_TOKEN_CHARACTERS = 3.4
_CALL_OVERHEAD = 60  # characters around a call's arguments that are generated too


class Surroundings(NamedTuple):
    """What else is known about a span of time, asked for only when something stalled."""

    client_slow_ns: int | None = None  # how long in it the client did not take what there was
    started: tuple[str, ...] = ()  # other requests to the same server that began in it


class _Late(NamedTuple):
    """A gap that waits to learn what follows it."""

    gap: int
    t_ns: int
    server_gap: int | None
    chunk: int
    median: float
    mad: float
    threshold: float
    at_once: float  # a chunk that follows within this came with it


class Stall:
    """One stream's watch. `surroundings(from_ns, to_ns)` is called only for a gap that counts."""

    def __init__(self, surroundings: Callable[[int, int], Surroundings] | None = None) -> None:
        self._surroundings = surroundings
        self._window = Trailing(_WINDOW)
        self._mad_seen = 0.0
        self._windows = 0
        self._last = 0
        self._last_server: int | None = None
        self._chunks = 0
        self._gaps = 0
        self._started = False
        self._over = False
        self._quick = 0.0  # gaps up to this are no stall, whatever the window says
        self._late: _Late | None = None
        self._run = 0  # chunks that came at once behind the late one
        self._run_ns = 0
        self._places: list[tuple[int, int]] = []  # chunk and time of each of the last stalls
        self._samples: list[HostSample] = []  # the latest
        self._told = 0
        self._latest: Finding | None = None
        self._silent: Finding | None = None

    def see(self, event: Event) -> Iterable[Finding]:
        kind = type(event)
        if kind is TextDelta or kind is ThinkingDelta:
            t_ns = event.t_ns
            gap = t_ns - self._last
            self._last = t_ns
            self._chunks += 1
            if gap <= self._quick and self._late is None and self._gaps > _SKIP:  # cannot be a stall
                self._last_server = event.server_ns  # type: ignore[union-attr]
                self._gaps = n = self._gaps + 1
                if n % _PACE:
                    self._window.push(gap)
                else:
                    self._pace(gap)
                return ()
            return self._chunk(event, gap)
        return self._other(event)

    def deltas(self, deltas: Deltas) -> Iterable[Finding]:
        """`see` for each; the server's clock is read only where it is needed."""
        if self._late is None and self._gaps > _SKIP:
            gaps = list(map(sub, deltas.t_ns, (self._last, *deltas.t_ns)))
            if max(gaps) <= self._quick and self._gaps % _PACE + len(gaps) < _PACE:  # all calm, and no new pace is due
                self._window.extend(gaps)
                self._gaps += len(gaps)
                self._chunks += len(gaps)
                self._last, self._last_server = deltas.t_ns[-1], deltas.server_ns(-1)
                return ()
        return [finding for delta in deltas for finding in self.see(delta)]

    def tick(self, t_ns: int) -> list[Finding]:
        """Time has passed: is a stream silent, or has a late chunk waited long enough for company?"""
        if self._over or not self._started:
            return []
        found: list[Finding] = []
        quiet = t_ns - self._last
        if self._late is not None and quiet > _HELD_NS:
            found += self._resolve()
        if self._silent is None and quiet > max(SILENT_NS, 20 * (self._window.median() or 0)):
            if self._surroundings is not None and 2 * (self._surroundings(self._last, t_ns).client_slow_ns or 0) >= quiet:
                return found  # the client reads nothing, so nothing is asked for
            says = f"The stream has been silent for {quiet / 1e9:.0f} s and is still open."
            evidence: dict[str, object] = {
                "silent_s": round(quiet / 1e9, 3),
                "median_gap_s": _seconds(self._window.median()),
                "hint": "a tool call that the server holds back until it is complete, a stuck runner, or a stopped one",
            }
            self._silent = Finding("stream.silent", "suspect", says, t_ns, evidence)
            found.append(self._silent)
        return found

    def _other(self, event: Event) -> Iterable[Finding]:
        match event:
            case HostSample():
                self._samples = [*self._samples[-3:], event]
                self._explain_later(event)
                return self.tick(event.t_ns)
            case Residency():
                return self.tick(event.t_ns)
            case Began():
                self._started = True
                self._last = self._last or event.t_ns
            case EmptyRecord() | Usage() | Malformed():
                self._last = event.t_ns  # not a token, but not silence either
                self._last_server = getattr(event, "server_ns", None)
            case Missed():
                self._last = event.t_ns
                self._last_server = self._late = None
                self._gaps = min(self._gaps, _SKIP - 1)  # the gap across lost bytes says nothing
            case Finished() | Cut() | Failed():
                self._over = True
                return self._resolve()
            case ToolCall() if event.whole:
                gap, self._last = event.t_ns - self._last, event.t_ns
                self._chunks += 1
                return self._chunk(event, self._beyond_writing(event, gap))
            case ToolArguments():
                gap, self._last = event.t_ns - self._last, event.t_ns
                self._chunks += 1
                return self._chunk(event, gap)
        return ()

    # --- gaps

    def _chunk(self, event: Event, gap: int) -> Iterable[Finding]:
        server = getattr(event, "server_ns", None)
        server_gap = server - self._last_server if server is not None and self._last_server is not None else None
        self._last_server = server
        self._started = True
        if self._chunks == 1:
            return ()
        self._gaps += 1
        if self._gaps <= _SKIP:
            return ()
        if self._silent is not None and gap > SILENT_NS:
            self._silent.evidence["resumed_after_s"] = round(gap / 1e9, 3)
            self._silent = None
            return ()
        found: Iterable[Finding] = ()
        if self._late is not None:
            if gap < self._late.at_once:
                self._run += 1
                self._run_ns += gap
                if self._run <= _WARM:  # more of them would make the window forget the pace
                    self._pace(gap)
                return ()
            found = self._resolve()
        self._suspect(gap, event.t_ns, server_gap)
        if self._late is None:
            self._pace(gap)
        return found

    def _pace(self, gap: float) -> None:
        """Take a gap into the window, and now and then bring up to date what is derived from it."""
        self._window.push(gap)
        median = self._window.median() or 0.0
        self._quick = 0.8 * (median + max(_LEAST_NS, _MEDIANS * median)) if len(self._window) >= _WARM else 0.0
        if self._gaps % _WINDOW == 0:
            self._windows += 1
            self._mad_seen += ((self._window.mad() or 0.0) - self._mad_seen) / self._windows

    def _suspect(self, gap: int, t_ns: int, server_gap: int | None) -> None:
        """Hold the gap back if it is too long for the window before it."""
        window = self._window
        median = window.median()
        if median is None:
            return
        if len(window) < _WARM:
            if gap > max(10 * median, _LONG_NS):
                self._late = _Late(gap, t_ns, server_gap, self._chunks - 1, median, 0.0, max(10 * median, _LONG_NS), median / 4)
            return
        if gap <= median + max(_LEAST_NS, _MEDIANS * median):
            return
        low, high = window.quantile(_BURST_SHARE) or 0.0, window.quantile(0.95) or 0.0
        if low < 0.15 * high:  # bursts: the pace of single gaps means nothing
            threshold = max(3 * (window.quantile(1.0) or 0.0), _LONG_NS)
            if gap > threshold:
                self._late = _Late(gap, t_ns, server_gap, self._chunks - 1, median, 0.0, threshold, high / 4)
            return
        mad = max(window.mad(median) or 0.0, _MAD_FLOOR * self._mad_seen)
        threshold = median + max(_SIGMAS * SIGMA * mad, _LEAST_NS, _MEDIANS * median)
        if gap > threshold:
            self._late = _Late(gap, t_ns, server_gap, self._chunks - 1, median, mad, threshold, median / 4)

    def _resolve(self) -> list[Finding]:
        """The company of the late chunk is known: was it a stall?"""
        late = self._late
        if late is None:
            return []
        self._late = None
        run, self._run = self._run, 0
        run_ns, self._run_ns = self._run_ns, 0
        own = late.gap + run_ns - run * late.median
        self._pace((late.gap + run_ns) / (run + 1))
        if own > late.threshold:
            return self._tell(late, 0)
        held = late.gap > max(8 * late.median, _HELD_NS)
        return self._tell(late, run) if held else []

    def _beyond_writing(self, call: ToolCall, gap: int) -> int:
        """A call's gap, less what its arguments take to write at the stream's pace (three times that, to be fair)."""
        median = self._window.median()
        if median is None:
            return 0
        tokens = (len(call.arguments) + len(call.name) + _CALL_OVERHEAD) / _TOKEN_CHARACTERS
        return max(round(gap - 3 * tokens * median), round(median) if gap > median else gap)

    # --- telling

    def _tell(self, late: _Late, held: int) -> list[Finding]:
        self._places = [*self._places[-7:], (late.chunk, late.t_ns)]
        self._told += 1
        if self._told > _MOST:
            if self._latest is not None:
                self._latest.evidence["further"] = self._told - _MOST
            return []
        evidence: dict[str, object] = {
            "gap_s": round(late.gap / 1e9, 6),
            "median_gap_s": round(late.median / 1e9, 6),
            "mad_s": round(late.mad / 1e9, 6),
            "threshold_s": round(late.threshold / 1e9, 6),
            "expected_false_per_1000_gaps": FALSE_PER_1000_GAPS,
            "server_gap_s": _seconds(late.server_gap),
        }
        if held:
            evidence["delivered_at_once"] = held + 1
        suspects = self._suspects(late, held, evidence)
        evidence["cause"] = suspects[0] if suspects else "unexplained"
        if len(suspects) > 1:
            evidence["also_suspected"] = suspects[1:]
        chunk = f"chunk {late.chunk}"
        says = f"The stream paused for {late.gap / 1e9:.3f} s before {chunk}, where {late.median / 1e9:.3f} s is usual"
        says += f": {_WORDS[str(evidence['cause'])]}."
        severity: Severity = "suspect" if late.gap >= 1_000_000_000 else "info"
        self._latest = Finding("stall", severity, says, late.t_ns, evidence, chunk=late.chunk)
        return [self._latest]

    def _suspects(self, late: _Late, held: int, evidence: dict[str, object]) -> list[str]:
        """Causes for which there is evidence, the strongest first."""
        began = late.t_ns - late.gap
        around = self._surroundings(began, late.t_ns) if self._surroundings is not None else Surroundings()
        suspects: list[str] = []
        if around.client_slow_ns is not None and 2 * around.client_slow_ns >= late.gap:
            evidence["client_slow_s"] = round(around.client_slow_ns / 1e9, 6)
            suspects.append("slow_client")
        at_server = None if late.server_gap is None else late.server_gap > 0.7 * late.gap
        evidence["side"] = "client" if suspects else {None: None, True: "server", False: "delivery"}[at_server]
        if not suspects and ((late.server_gap is not None and late.server_gap < 0.3 * late.gap) or (held and at_server is None)):
            suspects.append("delivery")
        for sample in self._samples:
            if began - _AGAIN_NS <= sample.t_ns <= late.t_ns + _AGAIN_NS:
                suspects += [cause for cause in _pressures(sample, evidence) if cause not in suspects]
        if around.started and "delivery" not in suspects:
            evidence["started"] = list(around.started[:4])
            suspects.append("other_request")
        if "delivery" not in suspects and (period := self._period()) is not None:
            evidence["period"] = period
            suspects.append("periodic")
        return suspects

    def _period(self) -> dict[str, float] | None:
        """Do the last stalls come at equal distances, in chunks or in time? Four are needed."""
        if len(self._places) < 4:
            return None
        places = self._places[-5:]
        for unit, index, scale, least in (("chunks", 0, 1.0, 1.0), ("seconds", 1, 1e9, 0.0)):
            steps = [b[index] - a[index] for a, b in itertools.pairwise(places)]
            mean = sum(steps) / len(steps)
            if max(abs(step - mean) for step in steps) <= max(least, 0.03 * mean):
                return {unit: round(mean / scale, 3)}
        return None

    def _explain_later(self, sample: HostSample) -> None:
        """A sample that comes just after a stall without explanation may explain it."""
        finding = self._latest
        if finding is None or finding.evidence["cause"] != "unexplained" or sample.t_ns - finding.t_ns > _AGAIN_NS:
            return
        causes = _pressures(sample, finding.evidence)
        if causes:
            finding.evidence["cause"] = causes[0]
            finding.summary = f"{finding.summary.rpartition(':')[0]}: {_WORDS[causes[0]]}."


_WORDS = {
    "unexplained": "no cause is seen",
    "slow_client": "the client did not take what there was",
    "delivery": "the server went on in time and the data came late, so the network or this machine is suspected",
    "swap": "the machine was swapping",
    "memory_pressure": "the machine was short of memory",
    "gpu_throttled": "the GPU was throttled",
    "gpu_memory": "the GPU's memory was full",
    "other_request": "another request began on the same server",
    "periodic": "it comes back at equal distances",
}


def _pressures(sample: HostSample, evidence: dict[str, object]) -> list[str]:
    """What the machine was short of, with the numbers that say so."""
    causes: list[str] = []
    if sample.swap_in_per_s is not None and sample.swap_in_per_s > 1024 * 1024:
        evidence["swap_in_bytes_per_s"] = round(sample.swap_in_per_s)
        causes.append("swap")
    if sample.pressure is not None and sample.pressure > 0.1:
        evidence["memory_pressure"] = round(sample.pressure, 3)
        causes.append("memory_pressure")
    if sample.gpu_throttled:
        causes.append("gpu_throttled")
    used, total = sample.gpu_memory_used, sample.gpu_memory_total
    if used is not None and total and used > 0.98 * total:
        evidence["gpu_memory_share"] = round(used / total, 4)
        causes.append("gpu_memory")
    return causes


def _seconds(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e9, 6)
