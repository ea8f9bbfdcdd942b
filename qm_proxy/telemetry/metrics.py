"""Counts and histograms of everything that passed: one aggregate, read by Prometheus and by OTLP alike. A sink.

Rules that hold here:

- Nothing is recorded per token. A closed exchange's gap series is sorted into buckets once (a bisect each), because
  `Histogram.record` of the SDK costs some fifty times as much per value.
- A finding is counted when it is told, everything else when its exchange closes.
- Labels are of low cardinality: model, client, origin, and closed sets. Beyond `SERIES_MAX` label sets of a metric, further ones
  are counted under `other`, so a client that invents model names cannot fill memory.
- Probes are told apart by `qm.origin`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import sub
from typing import Any, NamedTuple

from qm_proxy.findings import Finding
from qm_proxy.measure.series import unpack
from qm_proxy.record import Opened, Record
from qm_proxy.sinks import unheard
from qm_proxy.telemetry.names import METRICS, Metric

__all__ = ["Exemplar", "Histogram", "Metrics", "Series"]

SERIES_MAX = 500
_OPEN = 4096  # exchanges whose findings are counted as they are told
_PHASES = ("queue", "load", "prefill", "decode", "client_wait", "unexplained")


class Exemplar(NamedTuple):
    """One observation that stands for its bucket: which trace it was, its value, when (Unix seconds)."""

    trace_id: str
    value: float
    at: float


@dataclass(slots=True)
class Histogram:
    """Counts per bucket (the last is +Inf), sum and count; the latest exemplar of each bucket."""

    counts: list[int]
    total: float = 0.0
    n: int = 0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)


class Series(NamedTuple):
    """A metric with one value per label set, for the exporters."""

    key: str
    metric: Metric
    values: dict[tuple[str, ...], float | Histogram]


class Metrics:
    """The aggregate. `gauges` are asked at reading time: functions that return {labels: value} for a gauge or counter key."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, ...], float | Histogram]] = {key: {} for key in METRICS}
        self._gauges: dict[str, Callable[[], dict[tuple[str, ...], float]]] = {}
        self._open: OrderedDict[str, tuple[tuple[str, str, str], list[Finding]]] = OrderedDict()  # whose, and what was counted
        self.count("parser_fallbacks", (), 0)  # counted from the start: a rate needs the value before the first

    def watch(self, key: str, read: Callable[[], dict[tuple[str, ...], float]]) -> None:
        """Ask `read` for the values of `key` whenever metrics are read. KeyError: not in the table."""
        assert METRICS[key].kind != "histogram"
        self._gauges[key] = read

    def series(self) -> Iterator[Series]:
        """Every metric of the table in its order, with what there is of it."""
        for key, metric in METRICS.items():
            values: dict[tuple[str, ...], float | Histogram] = dict(self._values[key])
            if key in self._gauges:
                values.update(self._gauges[key]())
            yield Series(key, metric, values)

    # --- as a sink ----------------------------------------------------------------------------------------------------

    def opened(self, opened: Opened) -> None:
        """Counted when it closes; but its findings when they are told, which may be minutes before."""
        if opened.operation is not None:
            self._open[opened.id] = ((opened.model or "unknown", opened.client, opened.origin), [])
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)

    progress = unheard  # counted when it closes

    def found(self, finding: Finding) -> None:
        """Counted now, if its exchange is open, which knows model and client; what it cost, when that is known."""
        if (whose := self._open.get(finding.exchange_id or "")) is not None:
            us, counted = whose
            self.count("findings_total", (finding.kind, finding.severity, *us), 1)
            counted.append(finding)

    def closed(self, record: Record) -> None:
        _, counted = self._open.pop(record.id, ((), []))
        self.observe("http_duration", (record.method, _route(record), str(record.http_status or "")), record.total_s)
        if record.undecoded is not None:
            self.count("parser_fallbacks", (), 1)
        if record.operation is None:
            return
        model, client, origin = record.model or "unknown", record.client, record.origin
        us = (model, client, origin)
        operation: tuple[str, ...] = (record.operation, "ollama", model, origin)
        exemplar = record.trace_id
        self.count("exchanges", (*us, record.ending), 1)
        self.observe("operation_duration", (*operation, _error_type(record)), record.total_s, exemplar)
        self.observe("request_time", us, record.total_s, exemplar)
        for token_type, tokens in (("input", record.input_tokens), ("output", record.output_tokens)):
            if tokens is not None:
                self.observe("token_usage", (*operation, token_type), tokens)
                self.count("tokens", (*us, token_type), tokens)
        if record.cached_tokens is not None:  # a part of input: no type of the conventions' histogram
            self.count("tokens", (*us, "cached"), record.cached_tokens)
        if record.finish_reason is not None:
            self.count("finishes", (*us, record.finish_reason), 1)
        if record.context_window_tokens and record.input_tokens is not None:
            held = record.input_tokens + (record.output_tokens or 0)
            self.observe("window_fill", us, held / record.context_window_tokens, exemplar)
        if record.ttft_s is not None:
            self.observe("first_token", us, record.ttft_s, exemplar)
            if record.streamed:
                self.observe("first_chunk", operation, record.ttft_s, exemplar)
        if record.tokens_per_s is not None:
            self.observe("decode_rate", us, record.tokens_per_s)
        prefix = record.opened.placed.prefix if record.opened and record.opened.placed else None
        if prefix is not None and prefix.characters:
            self.observe("prefix_kept", us, prefix.common_characters / prefix.characters, exemplar)
        if record.proxy_overhead_s is not None:
            self.observe("overhead", (), record.proxy_overhead_s)
        for phase in _PHASES:
            if (spent := getattr(record, f"{phase}_s")) is not None:
                self.count("phase", (*us, phase), spent)
        self._server(record, operation)
        self._chunks(record, us, operation)
        for call in record.tool_calls:
            verdict = {True: "true", False: "false", None: "unknown"}[call.valid]
            self.count("tool_calls_total", (model, call.name, verdict, origin), 1)
        for finding in record.findings:
            if not any(finding is one for one in counted):
                self.count("findings_total", (finding.kind, finding.severity, *us), 1)
            if finding.tokens_wasted is not None:
                self.count("wasted", (finding.kind, model, origin), finding.tokens_wasted)

    def _server(self, record: Record, operation: tuple[str, ...]) -> None:
        """What the server itself measured; only the native dialect tells."""
        if record.dialect == "ollama" and record.server_total_s is not None:
            self.observe("server_duration", operation, record.server_total_s)
        if record.dialect != "ollama" or record.rate_source != "server":
            return
        known = (record.queue_s, record.load_s, record.prefill_s)
        if record.load_s is not None and record.prefill_s is not None:
            self.observe("server_first_token", operation, sum(part for part in known if part is not None))
        if record.tokens_per_s:
            self.observe("server_per_token", operation, 1 / record.tokens_per_s)

    def _chunks(self, record: Record, us: tuple[str, ...], operation: tuple[str, ...]) -> None:
        if record.streamed and record.chunks:  # the body of an answer in one piece is no chunk of a stream
            self.count("chunks_total", us, record.chunks)
        if record.streamed and record.output_tokens is not None:
            self.count("streamed_tokens", us, record.output_tokens)
        if record.series is None or record.series.n < 2:
            return
        arrivals = unpack(record.series.arrival)
        gaps = list(map(sub, arrivals[1:], arrivals))
        for index in sorted({*record.series.coalesced, *record.series.suspended}, reverse=True):
            if 0 < index <= len(gaps):
                del gaps[index - 1]
        gaps.sort()
        self.observe_sorted("chunk_gap", us, gaps)
        self.observe_sorted("output_chunk", operation, gaps)

    # --- the arithmetic -----------------------------------------------------------------------------------------------

    def count(self, key: str, labels: tuple[str, ...], amount: float) -> None:
        values = self._values[key]
        labels = self._within(values, labels)
        before = values.get(labels, 0.0)
        assert not isinstance(before, Histogram)
        values[labels] = before + amount

    def observe(self, key: str, labels: tuple[str, ...], value: float, trace_id: str | None = None) -> None:
        histogram = self._histogram(key, labels)
        place = bisect_left(METRICS[key].buckets, value)
        histogram.counts[place] += 1
        histogram.total += value
        histogram.n += 1
        if trace_id is not None:
            import time

            histogram.exemplars[place] = Exemplar(trace_id, value, time.time())

    def observe_sorted(self, key: str, labels: tuple[str, ...], gaps_ns: list[int]) -> None:
        """Many gaps at once, ascending, in ns: a bisect for each bucket's edge instead of one for each gap."""
        if not gaps_ns:
            return
        histogram = self._histogram(key, labels)
        below = 0
        for place, edge in enumerate(METRICS[key].buckets):
            upto = bisect_right(gaps_ns, edge * 1e9, below)
            histogram.counts[place] += upto - below
            below = upto
        histogram.counts[-1] += len(gaps_ns) - below
        histogram.total += sum(gaps_ns) / 1e9
        histogram.n += len(gaps_ns)

    def _histogram(self, key: str, labels: tuple[str, ...]) -> Histogram:
        values = self._values[key]
        labels = self._within(values, labels)
        found = values.get(labels)
        if found is None:
            found = values[labels] = Histogram([0] * (len(METRICS[key].buckets) + 1))
        assert isinstance(found, Histogram)
        return found

    @staticmethod
    def _within(values: dict[tuple[str, ...], Any], labels: tuple[str, ...]) -> tuple[str, ...]:
        """These labels, or `other` for each when the metric already has as many series as it may."""
        if labels in values or len(values) < SERIES_MAX:
            return labels
        return ("other",) * len(labels)


def _route(record: Record) -> str:
    """The route's template; unknown paths are one label."""
    from_table = record.dialect != "other" or record.http_status not in (404, None)
    if not from_table:
        return "unknown"
    return "/api/blobs/:digest" if record.route.startswith("/api/blobs/") else record.route


def _error_type(record: Record) -> str:
    """Low-cardinality `error.type`; empty where nothing failed. A client that left is no error, and a finding never is one."""
    if record.http_status is not None and record.http_status >= 400 and record.ending != "upstream_unreachable":
        return str(record.http_status)
    return {
        "upstream_unreachable": "upstream_connect",
        "upstream_truncated": "upstream_truncated",
        "upstream_error": "ollama_error",
    }.get(record.ending, "")
