"""Set-up and export over OTLP, by the standard `OTEL_*` variables and nothing else. No endpoint set: nothing is built, no word.

Rules that hold here:

- The observer's loop only puts finished records into a bounded queue; one thread builds and sends. A full queue drops the
  record and counts it; a request that fails after the exporter's own retries is counted. The data path never waits.
- Requests stay under the usual 4 MiB limit of receivers: a batch that is larger is sent in halves.
- Metrics are sent from the same aggregate that Prometheus reads, cumulative, every `OTEL_METRIC_EXPORT_INTERVAL`.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Progress, Record
from qm_proxy.telemetry.content import Redact
from qm_proxy.telemetry.metrics import Histogram, Metrics
from qm_proxy.telemetry.names import ATTRIBUTES, EVENTS, attribute, metric_name, profile_from_environment
from qm_proxy.telemetry.spans import Itl, Spans, finding_values, parse_traceparent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["SIGNALS", "Export", "wanted"]

QUEUE_RECORDS = 1024
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

    def __init__(self, metrics: Metrics, upstream_url: str, version: str, redact: Redact | None = None) -> None:
        self.drops = dict.fromkeys(SIGNALS, 0)
        self._metrics = metrics
        self._version = version
        self._upstream = upstream_url
        self._redact = redact
        self._queue: queue.Queue[Record | None] = queue.Queue(QUEUE_RECORDS)
        self._thread = threading.Thread(target=self._work, name="otlp", daemon=True)
        self._profile = profile_from_environment()
        self._traces, self._send_metrics, self._logs = (wanted(s) for s in SIGNALS)
        self._interval_s = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "60000")) / 1000

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

    def progress(self, progress: Progress) -> None:
        """Spans are built from the finished record."""

    def found(self, finding: Finding) -> None:
        """Sent with its record."""

    def closed(self, record: Record) -> None:
        """Give the record its trace id (the client's, or a new one) and queue it."""
        parent = parse_traceparent(record.opened.traceparent if record.opened else None)
        record.trace_id = f"{parent[0]:032x}" if parent else secrets.token_hex(16)
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.drops["traces"] += self._traces
            self.drops["logs"] += self._logs * len(record.findings)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # failures are counted and shown, not printed
        sender = _Sender(self)
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
                batch.append(record)
            if batch:
                sender.send(batch)
            if self._send_metrics and (time.monotonic() >= due or not going):
                due = time.monotonic() + self._interval_s
                sender.send_metrics()
        sender.close()


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

    def __init__(self, export: Export) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

        self._export = export
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
                logs += [self._log(record, finding, context) for finding in record.findings] if self._to_logs else []
            except Exception:  # a record that cannot be told must not end the thread
                self._export.drops["traces"] += 1
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
        try:
            result = self._to_traces.export(spans)
        except Exception:  # an exporter may raise what it likes: the spans are lost and counted
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._export.drops["traces"] += len(spans)

    def _log(self, record: Record, finding: Finding, context: Any) -> Any:
        """A finding as a log-based event with the trace's context."""
        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.sdk._logs import ReadWriteLogRecord
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context

        from qm_proxy.telemetry.spans import start_unix_ns

        values = finding_values(finding) | {"request_model": record.model, "client": record.client, "origin": record.origin}
        named = {name: v for k, v in values.items() if v is not None and (name := attribute(k, self._export._profile))}
        at = start_unix_ns(record) + int((finding.t_s or 0) * 1e9)
        return ReadWriteLogRecord(
            LogRecord(
                timestamp=at,
                observed_timestamp=time.time_ns(),
                context=set_span_in_context(NonRecordingSpan(context)),
                severity_text=finding.severity,
                severity_number=SeverityNumber(_SEVERITY[finding.severity]),
                body=finding.summary,
                attributes=named,
                event_name=EVENTS["finding"],
            ),
            resource=self._resource,
            instrumentation_scope=InstrumentationScope("qm_proxy", self._export._version),
        )

    def _send_logs(self, logs: list[Any]) -> None:
        from opentelemetry.sdk._logs.export import LogRecordExportResult

        try:
            result = self._to_logs.export(logs)
        except Exception:  # as with spans
            result = LogRecordExportResult.FAILURE
        if result is not LogRecordExportResult.SUCCESS:
            self._export.drops["logs"] += len(logs)

    def send_metrics(self) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        points = self._points()
        scope = ScopeMetrics(InstrumentationScope("qm_proxy", self._export._version), points, "")
        try:
            result = self._to_metrics.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
        except Exception:  # as with spans
            result = MetricExportResult.FAILURE
        if result is not MetricExportResult.SUCCESS:
            self._export.drops["metrics"] += len(points)

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
