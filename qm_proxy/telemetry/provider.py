"""Set-up and export over OTLP, by the standard `OTEL_*` variables and nothing else. No endpoint set: nothing is built, no word.

Rules that hold here:

- The observer's loop only puts finished records into a bounded queue; one thread builds and sends. A full queue drops the
  record and counts it; a request that fails after the exporter's own retries is counted, and `status` keeps the last reason.
  The data path never waits.
- Requests stay under the usual 4 MiB limit of receivers: a batch that is larger is sent in halves.
- Metrics are sent from the same aggregate that Prometheus reads, cumulative, every `OTEL_METRIC_EXPORT_INTERVAL`.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import re
import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Record
from qm_proxy.sinks import unheard
from qm_proxy.telemetry.content import Redact, asking
from qm_proxy.telemetry.metrics import Histogram, Metrics
from qm_proxy.telemetry.names import ATTRIBUTES, EVENTS, attribute, metric_name, profile_from_environment
from qm_proxy.telemetry.spans import Itl, Spans, finding_values, parse_traceparent, start_unix_ns

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

__all__ = ["SIGNALS", "Export", "reason", "wanted"]

QUEUE_RECORDS = 1024
QUEUE_BYTES = 64 * 2**20  # of captured content in the queue: a receiver that is away must not cost memory
BATCH_RECORDS = 128
LINGER_S = 1.0
REQUEST_BYTES = 3_500_000
SIGNALS = ("traces", "metrics", "logs")
_SEVERITY = {"info": 9, "suspect": 13, "violation": 17}


def wanted(signal: str) -> bool:
    """Whether the environment asks for OTLP export of this signal ("traces", "metrics" or "logs")."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip().lower()
    if exporter not in ("otlp", ""):
        return False
    return any(os.environ.get(name) for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))


class Export:
    """A sink that sends. Create it only when `any(wanted(s) …)`; `start` begins the thread, `close` flushes and ends it."""

    def __init__(
        self,
        metrics: Metrics,
        upstream_url: str,
        version: str,
        redact: Redact | None = None,
        *,
        content_is_ours: bool = False,
    ) -> None:
        """`redact`: without it no content is sent. `content_is_ours`: it was captured for export alone, so that the sinks behind
        this one get the record without it."""
        self.drops = dict.fromkeys(SIGNALS, 0)
        self.sent = dict.fromkeys(SIGNALS, 0)
        self.troubles: dict[str, str | None] = dict.fromkeys(SIGNALS)  # why the last request failed; None: it did not
        self._content_is_ours = content_is_ours
        self._metrics = metrics
        self._version = version
        self._upstream = upstream_url
        self._redact = redact
        self._queue: queue.Queue[Record | None] = queue.Queue(QUEUE_RECORDS)
        self._held_bytes = 0
        self._holding = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="otlp", daemon=True)
        self._profile = profile_from_environment()
        self._traces, self._send_metrics, self._logs = (wanted(s) for s in SIGNALS)
        self._interval_s = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "60000")) / 1000

    @property
    def wants_content(self) -> bool:
        """Whether prompts and answers must be captured for it."""
        asked = asking()
        return self._redact is not None and ((asked.on_spans and self._traces) or (asked.on_events and self._logs))

    def status(self) -> dict[str, Any]:
        """What the console shows: per signal that is exported, what was sent and dropped, and why the last request failed."""
        used = {"traces": self._traces, "metrics": self._send_metrics, "logs": self._logs}
        signals = [
            {"signal": s, "sent": self.sent[s], "dropped": self.drops[s], "failing": self.troubles[s]} for s in SIGNALS if used[s]
        ]
        return {"queued": self._queue.qsize(), "content": self.wants_content, "signals": signals}

    def trouble(self) -> str | None:
        """What a user at the terminal is told while nothing can be delivered; `None`: all is well, or nothing was sent yet."""
        failing = [signal for signal in SIGNALS if self.troubles[signal] is not None]
        if not failing:
            return None
        return f"{' and '.join(failing)} cannot be exported: {self.troubles[failing[0]]}. What it does not take is dropped."

    def start(self) -> None:
        self._thread.start()

    def close(self, patience_s: float = 5.0) -> None:
        """Send what is queued, at most for `patience_s`; what is left then is counted as dropped."""
        try:
            self._queue.put(None, timeout=0.1)
        except queue.Full:
            self.drops["traces"] += self._queue.qsize()
        self._thread.join(patience_s)

    # --- as a sink ----------------------------------------------------------------------------------------------------

    def opened(self, opened: Opened) -> None:
        """Spans are built from the finished record."""

    progress = unheard  # spans are built from the finished record

    def found(self, finding: Finding) -> None:
        """Sent with its record."""

    def closed(self, record: Record) -> None:
        """Give the record its trace id (the client's, or a new one) and queue it."""
        parent = parse_traceparent(record.opened.traceparent if record.opened else None)
        record.trace_id = f"{parent[0]:032x}" if parent else secrets.token_hex(16)
        whole = self._taken(record)
        if not self._hold(whole):
            self._lost(whole)
            return
        try:
            self._queue.put_nowait(whole)
        except queue.Full:
            self._release(whole)
            self._lost(whole)

    def _lost(self, record: Record) -> None:
        self.drops["traces"] += self._traces
        self.drops["logs"] += self._logs * len(record.findings)

    def _hold(self, record: Record) -> bool:
        """Whether its content still fits."""
        size = _content_bytes(record)
        with self._holding:
            if size and self._held_bytes + size > QUEUE_BYTES:
                return False
            self._held_bytes += size
        return True

    def _release(self, record: Record) -> None:
        with self._holding:
            self._held_bytes -= _content_bytes(record)

    def _taken(self, record: Record) -> Record:
        if not self._content_is_ours or record.captured_request is None:
            return record
        whole = replace(record)
        record.captured_request = record.captured_answer = record.captured_thinking = None
        record.answer_pieces = record.thinking_pieces = None
        record.captured_calls = []
        if (opened := record.opened) is not None and opened.asked is not None:
            record.opened = replace(opened, asked=replace(opened.asked, messages=()))
        return whole

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        said = _Said()
        said.listen()
        sender = _Sender(self, said)
        due = time.monotonic() + self._interval_s
        going = True
        while going:
            batch: list[Record] = []
            until = time.monotonic() + LINGER_S
            while len(batch) < BATCH_RECORDS and (left := until - time.monotonic()) > 0:
                try:
                    record = self._queue.get(timeout=left)
                except queue.Empty:
                    break
                if record is None:
                    going = False
                    break
                self._release(record)
                batch.append(record)
            if batch:
                sender.send(batch)
            if self._send_metrics and (time.monotonic() >= due or not going):
                due = time.monotonic() + self._interval_s
                sender.send_metrics()
        sender.close()


def _content_bytes(record: Record) -> int:
    """About what the captured content holds in memory: the request is there as text and as messages."""
    return 2 * len(record.captured_request or "") + len(record.captured_answer or "") + len(record.captured_thinking or "")


class _Said(logging.Handler):
    """What the exporters log: counted and shown, not printed. Only they know why a request failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: str | None = None

    def listen(self) -> None:
        logger = logging.getLogger("opentelemetry")
        logger.handlers, logger.propagate = [self], False

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if self.last is None or "max retries" not in said:  # which gives up and does not say over what: the warnings before it do
            self.last = said


def reason(said: str) -> str:
    """An exporter's log line in a user's words: what the receiver answered, or why it could not be reached."""
    if refused := re.search(r"code: (\d+), reason: (.*)", said):
        return f"the receiver answers {refused[1]} {refused[2]}"
    if unreachable := re.search(r"\[Errno -?\d+\] ([^'\")]+)", said):
        return f"the receiver cannot be reached: {unreachable[1]}"
    if transient := re.search(r"Transient error (.*) encountered", said):
        return f"the receiver answers {transient[1]}"
    if not said or "timeout" in said.lower() or "timed out" in said.lower():
        return "the receiver does not answer in time"
    return said


class _Ids:
    """Span ids at random; the trace id that the record was given."""

    trace_id = 0

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def is_trace_id_random(self) -> bool:
        return False


class _Sender:
    """Everything of the SDK's, made on the exporting thread: it is heavy to import."""

    def __init__(self, export: Export, said: _Said) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

        self._export = export
        self._said = said
        resource = Resource({"host.name": platform.node()}).merge(  # OTEL_RESOURCE_ATTRIBUTES may say another
            Resource.create(
                {
                    "service.name": os.environ.get("OTEL_SERVICE_NAME") or "qm-proxy",
                    "service.version": export._version,
                    "service.instance.id": secrets.token_hex(8),
                }
            )
        )
        self._resource = resource
        self._spans: list[ReadableSpan] = []
        collected = self._spans

        class Collect(SpanExporter):
            def export(self, spans: Any) -> SpanExportResult:
                collected.extend(spans)
                return SpanExportResult.SUCCESS

        self._ids = _Ids()
        provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)  # type: ignore[arg-type]
        provider.add_span_processor(SimpleSpanProcessor(Collect()))
        url = urlsplit(export._upstream)
        itl: Itl = "full" if os.environ.get("QM_EXPORT_ITL", "").lower() == "full" else "summary"
        self._build = Spans(
            provider.get_tracer("qm_proxy", export._version),
            export._profile,
            itl,
            server=(url.hostname, url.port) if url.hostname and url.port else None,
            redact=export._redact,
        )
        grpc = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf").strip() == "grpc"
        self._to_traces, self._to_metrics, self._to_logs = _exporters(grpc, export._traces, export._send_metrics, export._logs)
        self._started_ns = time.time_ns()

    def send(self, records: list[Record]) -> None:
        logs: list[Any] = []
        for record in records:
            self._ids.trace_id = int(record.trace_id or secrets.token_hex(16), 16)
            try:
                context = self._build.build(record)
                if self._to_logs is not None:
                    logs += [self._finding(record, finding, context) for finding in record.findings]
                    if (details := self._build.details(record)) is not None:
                        logs.append(self._operation(record, details, context))
            except Exception as exc:  # a record that cannot be told must not end the thread
                self._dropped("traces", 1, f"{type(exc).__name__}: {exc}")
        spans, self._spans[:] = list(self._spans), []
        if self._to_traces is not None and spans:
            self._send_spans(spans)
        if self._to_logs is not None and logs:
            self._send_logs(logs)

    def _send_spans(self, spans: list[ReadableSpan]) -> None:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
        from opentelemetry.sdk.trace.export import SpanExportResult

        if len(spans) > 1 and encode_spans(spans).ByteSize() > REQUEST_BYTES:
            self._send_spans(spans[: len(spans) // 2])
            self._send_spans(spans[len(spans) // 2 :])
            return
        self._deliver("traces", len(spans), lambda: self._to_traces.export(spans) is SpanExportResult.SUCCESS)

    def _deliver(self, signal: str, n: int, export: Callable[[], bool]) -> None:
        """Hand `n` items to an exporter; count them as sent or dropped, and keep the reason."""
        self._said.last = None
        try:
            sent = export()
        except Exception as exc:  # an exporter may raise what it likes: the items are lost and counted
            self._dropped(signal, n, f"{type(exc).__name__}: {exc}")
            return
        if sent:
            self._export.sent[signal] += n
            self._export.troubles[signal] = None
        else:
            self._dropped(signal, n, reason(self._said.last or ""))

    def _dropped(self, signal: str, n: int, why: str) -> None:
        self._export.drops[signal] += n
        self._export.troubles[signal] = why[:300]

    def _finding(self, record: Record, finding: Finding, context: SpanContext) -> Any:
        """A finding as a log-based event with the trace's context."""
        values = finding_values(finding) | {"request_model": record.model, "client": record.client, "origin": record.origin}
        named = {name: v for k, v in values.items() if v is not None and (name := attribute(k, self._export._profile))}
        at = start_unix_ns(record) + int((finding.t_s or 0) * 1e9)
        return self._event("finding", at, context, named, finding.severity, _SEVERITY[finding.severity], finding.summary)

    def _operation(self, record: Record, details: dict[str, Any], context: SpanContext) -> Any:
        """The whole operation as an event of the conventions, for those who want content in logs rather than on spans."""
        at = start_unix_ns(record) + int(record.total_s * 1e9)
        return self._event("operation_details", at, context, details, "info", _SEVERITY["info"], None)

    def _event(
        self, key: str, at: int, context: SpanContext, attributes: dict[str, Any], severity: str, number: int, body: str | None
    ) -> Any:
        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.sdk._logs import ReadWriteLogRecord
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context

        return ReadWriteLogRecord(
            LogRecord(
                timestamp=at,
                observed_timestamp=time.time_ns(),
                context=set_span_in_context(NonRecordingSpan(context)),
                severity_text=severity,
                severity_number=SeverityNumber(number),
                body=body,
                attributes=attributes,
                event_name=EVENTS[key],
            ),
            resource=self._resource,
            instrumentation_scope=InstrumentationScope("qm_proxy", self._export._version),
        )

    def _send_logs(self, logs: list[Any]) -> None:
        from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
        from opentelemetry.sdk._logs.export import LogRecordExportResult

        if len(logs) > 1 and encode_logs(logs).ByteSize() > REQUEST_BYTES:
            self._send_logs(logs[: len(logs) // 2])
            self._send_logs(logs[len(logs) // 2 :])
            return
        self._deliver("logs", len(logs), lambda: self._to_logs.export(logs) is LogRecordExportResult.SUCCESS)

    def send_metrics(self) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        points = self._points()
        scope = ScopeMetrics(InstrumentationScope("qm_proxy", self._export._version), points, "")
        whole = MetricsData([ResourceMetrics(self._resource, [scope], "")])
        self._deliver("metrics", len(points), lambda: self._to_metrics.export(whole) is MetricExportResult.SUCCESS)

    def _points(self) -> list[Any]:
        from opentelemetry.sdk.metrics import export as m

        now, temporality = time.time_ns(), m.AggregationTemporality.CUMULATIVE
        found: list[Any] = []
        for key, metric, values in self._export._metrics.series():
            if not values:
                continue
            names = [ATTRIBUTES[label].name(self._export._profile) for label in metric.labels]
            points: list[Any] = []
            for labels, value in values.items():
                attributes = {n: v for n, v in zip(names, labels, strict=True) if n is not None and v != ""}
                if isinstance(value, Histogram):
                    edges = [float(edge) for edge in metric.buckets]
                    points.append(
                        m.HistogramDataPoint(
                            attributes, self._started_ns, now, value.n, value.total, list(value.counts), edges, 0.0, 0.0, []
                        )
                    )
                else:
                    points.append(m.NumberDataPoint(attributes, self._started_ns, now, value, []))
            data: Any
            if metric.kind == "histogram":
                data = m.Histogram(points, temporality)
            elif metric.kind == "counter":
                data = m.Sum(points, temporality, True)
            else:
                data = m.Gauge(points)
            found.append(m.Metric(metric_name(key, self._export._profile), metric.description, metric.unit, data))
        return found

    def close(self) -> None:
        for exporter in (self._to_traces, self._to_metrics, self._to_logs):
            if exporter is not None:
                exporter.shutdown()


def _exporters(grpc: bool, traces: bool, metrics: bool, logs: bool) -> tuple[Any, Any, Any]:
    """The OTLP exporters that are wanted, over HTTP; over gRPC where the variable says so and the extra is installed."""
    if grpc:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

        return (GrpcSpans() if traces else None, GrpcMetrics() if metrics else None, GrpcLogs() if logs else None)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return (
        OTLPSpanExporter() if traces else None,
        OTLPMetricExporter() if metrics else None,
        OTLPLogExporter() if logs else None,
    )
