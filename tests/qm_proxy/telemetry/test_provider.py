"""Spans, logs and metrics arrive at a real OTLP/HTTP receiver; a bad receiver costs telemetry, counted, and nothing else."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Record
from qm_proxy.telemetry.metrics import Metrics
from qm_proxy.telemetry.provider import Export, wanted

from .test_metrics import record as plain_record


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it is sent; `mode` is how it behaves: good, 429, 400 or dead (closes without answering)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = "good"
        self.got: dict[str, list[Any]] = {"/v1/traces": [], "/v1/logs": [], "/v1/metrics": []}
        self.largest = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.largest = max(server.largest, len(body))
        if server.mode == "dead":
            self.close_connection = True
            return
        if server.mode == "good":
            kinds: dict[str, Any] = {
                "/v1/traces": ExportTraceServiceRequest,
                "/v1/logs": ExportLogsServiceRequest,
                "/v1/metrics": ExportMetricsServiceRequest,
            }
            server.got[self.path].append(kinds[self.path].FromString(body))
        self.send_response(200 if server.mode == "good" else int(server.mode))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def record(**changed: Any) -> Record:
    opened = Opened(
        id="x",
        t_ns=0,  # type: ignore[arg-type]
        started_at="2026-11-24T10:00:00Z",
        method="POST",
        route="/api/chat",
        dialect="ollama",
        operation="chat",
        model="m:1",
        streamed=True,
        client="aider",
        user_agent=None,
        origin="client",
        asked=None,
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    return plain_record(**({"opened": opened} | changed))


def sent(records: list[Record], metrics: Metrics | None = None) -> Export:
    export = Export(metrics or Metrics(), "http://127.0.0.1:11434", "0")
    export.start()
    for one in records:
        export.closed(one)
    export.close(20)
    return export


def spans(receiver: Receiver) -> list[Any]:
    return [
        span
        for request in receiver.got["/v1/traces"]
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def attributes(thing: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in thing.attributes}


def test_the_tree_hangs_under_the_clients_span(receiver: Receiver) -> None:
    finding = Finding(
        "stall", "suspect", "a stall of 200 ms", 0, {"gap_s": 0.2, "excerpt": "secret words"}, chunk=4, id="f", t_s=0.3
    )
    sent([record(findings=[finding])])
    by_name = {span.name: span for span in spans(receiver)}
    server, client = by_name["POST /api/chat"], by_name["chat m:1"]
    assert server.trace_id.hex() == "a" * 32
    assert server.parent_span_id.hex() == "b" * 16
    assert client.parent_span_id == server.span_id
    assert client.kind == 3
    assert server.kind == 2
    assert {"qm.load", "qm.prefill", "qm.decode"} <= set(by_name)
    assert "qm.queue" not in by_name, "a phase that took no time is no span"
    found = attributes(client)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.usage.output_tokens"] == 6
    assert found["gen_ai.response.time_to_first_chunk"] == 0.1
    assert client.end_time_unix_nano - client.start_time_unix_nano == pytest.approx(340_000_000, abs=1000)
    events = {e.name: attributes(e) for e in client.events}
    assert events["qm.tool_call"]["gen_ai.tool.name"] == "bash"
    assert events["qm.finding"]["qm.finding"] == "stall"
    (log,) = [r for q in receiver.got["/v1/logs"] for rs in q.resource_logs for sl in rs.scope_logs for r in sl.log_records]
    assert log.event_name == "qm.finding"
    assert log.trace_id.hex() == "a" * 32
    assert log.span_id == client.span_id
    everything = b"".join(m.SerializeToString() for kind in receiver.got.values() for m in kind)
    assert b"secret words" not in everything


def test_malformed_traceparent_starts_a_new_trace(receiver: Receiver) -> None:
    one = record()
    assert one.opened is not None
    one.opened.traceparent = "00-zz"
    sent([one])
    server = next(s for s in spans(receiver) if s.name == "POST /api/chat")
    assert not server.parent_span_id
    assert server.trace_id.hex() == one.trace_id


def test_metrics_carry_the_aggregate(receiver: Receiver) -> None:
    metrics = Metrics()
    metrics.closed(record())
    sent([], metrics)
    found = {
        m.name: m for q in receiver.got["/v1/metrics"] for rm in q.resource_metrics for sm in rm.scope_metrics for m in sm.metrics
    }
    assert found["gen_ai.client.operation.duration"].unit == "s"
    (gap,) = found["qm.chunk.gap"].histogram.data_points
    assert gap.count == 3
    assert sum(gap.bucket_counts) == 3


@pytest.mark.parametrize("mode", ["400", "dead"])
def test_a_bad_receiver_costs_only_telemetry(receiver: Receiver, mode: str) -> None:
    receiver.mode = mode
    export = sent([record()])
    assert export.drops["traces"] == 5


def test_a_full_queue_is_counted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qm_proxy.telemetry.provider.QUEUE_RECORDS", 3)
    export = Export(Metrics(), "http://127.0.0.1:11434", "0")
    for _ in range(5):
        export.closed(record())
    assert export.drops["traces"] == 2


def test_large_batches_are_halved(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qm_proxy.telemetry.provider.REQUEST_BYTES", 4000)
    sent([record() for _ in range(8)])
    assert len(receiver.got["/v1/traces"]) > 1
    assert receiver.largest < 4000 * 2
    assert len(spans(receiver)) == 5 * 8


def test_nothing_is_wanted_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_TRACES_EXPORTER",
        "OTEL_SDK_DISABLED",
    ):
        monkeypatch.delenv(name, raising=False)
    assert not wanted("traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert wanted("traces")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not wanted("traces")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not wanted("traces")
