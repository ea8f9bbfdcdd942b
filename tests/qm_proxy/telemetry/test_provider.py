"""Spans, logs and metrics arrive at a real OTLP/HTTP receiver; a bad receiver costs telemetry, counted, and nothing else."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from qm_proxy.events import Asked, Message, Nanoseconds
from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Record
from qm_proxy.telemetry.content import CAPTURE_VARIABLE, Redact
from qm_proxy.telemetry.metrics import Metrics
from qm_proxy.telemetry.provider import Export, reason, wanted

from .test_metrics import record as plain_record


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it is sent; `mode` is how it behaves: good, a status (429, 400, 413, 503), small (413 above `limit`), slow
    (answers after `release`), or dead (closes without answering)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = "good"
        self.got: dict[str, list[Any]] = {"/v1/traces": [], "/v1/logs": [], "/v1/metrics": []}
        self.largest = 0
        self.limit = 4 * 2**20
        self.release = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.largest = max(server.largest, len(body))
        if server.mode == "slow":
            server.release.wait(30)
        if server.mode in ("dead", "slow"):
            self.close_connection = True
            return
        good = server.mode == "good" or (server.mode == "small" and len(body) <= server.limit)
        if good:
            kinds: dict[str, Any] = {
                "/v1/traces": ExportTraceServiceRequest,
                "/v1/logs": ExportLogsServiceRequest,
                "/v1/metrics": ExportMetricsServiceRequest,
            }
            server.got[self.path].append(kinds[self.path].FromString(body))
        self.send_response(200 if good else 413 if server.mode == "small" else int(server.mode))
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
    server.release.set()
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


def sent(records: list[Record], metrics: Metrics | None = None, redact: Redact | None = None) -> Export:
    export = Export(metrics or Metrics(), "http://127.0.0.1:11434", "0", redact)
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


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("400", "answers 400 Bad Request"),
        ("413", "answers 413"),
        ("429", "Too Many Requests|in time"),  # the second when the first pause would have been longer than what is left
        ("503", "Service Unavailable|in time"),
        ("dead", "onnection|in time"),
        ("slow", "in time|timed out"),
    ],
)
def test_a_bad_receiver_costs_only_telemetry(receiver: Receiver, mode: str, why: str) -> None:
    """Counted, with the reason, in what the console and the terminal show."""
    receiver.mode = mode
    export = sent([record()])
    assert export.drops["traces"] == 5
    told = {signal["signal"]: signal for signal in export.status()["signals"]}
    assert (told["traces"]["sent"], told["traces"]["dropped"]) == (0, 5)
    assert re.search(why, str(told["traces"]["failing"]))
    assert "cannot be exported" in str(export.trouble())


def test_nobody_there_is_told_too(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    export = sent([record()])
    assert export.drops["traces"] == 5
    assert re.search("Connection refused|in time", str(export.trouble()))


def test_it_recovers(receiver: Receiver) -> None:
    receiver.mode = "400"
    export = Export(Metrics(), "http://127.0.0.1:11434", "0")
    export.start()
    tick = threading.Event()
    export.closed(record())
    while export.trouble() is None:
        tick.wait(0.01)
    receiver.mode = "good"
    export.closed(record())
    while export.sent["traces"] == 0:
        tick.wait(0.01)
    export.close(20)
    assert export.trouble() is None
    assert (export.sent["traces"], export.drops["traces"]) == (5, 5)


def test_the_loop_never_waits_for_a_slow_receiver(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred records while the receiver holds the first: what fits is queued, the rest counted, and `closed` came back."""
    monkeypatch.setattr("qm_proxy.telemetry.provider.QUEUE_RECORDS", 10)
    monkeypatch.setattr("qm_proxy.telemetry.provider.BATCH_RECORDS", 1)
    receiver.mode = "slow"
    export = Export(Metrics(), "http://127.0.0.1:11434", "0")
    export.start()
    for _ in range(100):
        export.closed(record())
    dropped = export.drops["traces"]
    receiver.mode = "good"
    receiver.release.set()
    export.close(20)
    assert dropped >= 100 - 10 - 2


def test_a_full_queue_is_counted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qm_proxy.telemetry.provider.QUEUE_RECORDS", 3)
    export = Export(Metrics(), "http://127.0.0.1:11434", "0")
    for _ in range(5):
        export.closed(record())
    assert export.drops["traces"] == 2


def test_queued_content_is_bounded_in_bytes(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qm_proxy.telemetry.provider.QUEUE_BYTES", 10_000)
    export = Export(Metrics(), "http://127.0.0.1:11434", "0")
    for _ in range(5):
        export.closed(record(captured_request="x" * 2000, captured_answer="y"))
    export.closed(record())  # without content: the records' own bound holds
    assert export.drops["traces"] == 3
    export.start()
    export.close(20)
    assert export.sent["traces"] == 5 * 3


def test_a_receiver_of_four_mebibytes_gets_everything(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content makes batches large: 40 records of 256 KiB are 10 MiB. Spans and logs are sent in halves until they fit."""
    monkeypatch.setenv(CAPTURE_VARIABLE, "SPAN_AND_EVENT")
    receiver.mode = "small"
    export = sent([captured(text="x" * 16_000, messages=16) for _ in range(40)], redact=hide)
    assert export.drops == {"traces": 0, "metrics": 0, "logs": 0}
    assert export.sent["logs"] == 40 + 40  # each record has a finding
    assert 2**20 < receiver.largest <= receiver.limit


# --- content ----------------------------------------------------------------------------------------------------------

MESSAGES = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages")


def hide(text: str) -> str:
    return text.replace("hunter2", "[hidden]")


def captured(text: str = "my password is hunter2", messages: int = 1) -> Record:
    """A record as the observer makes it when content is wanted."""
    said = tuple(Message("user", text) for _ in range(messages))
    asked = Asked(Nanoseconds(0), "ollama", "chat", "m:1", True, messages=(Message("system", "be brief"), *said))
    made = record()
    assert made.opened is not None
    made.opened = replace(made.opened, asked=asked)
    made.captured_request, made.captured_answer = text, f"So {text}!"
    return made


def logs(receiver: Receiver) -> list[Any]:
    return [r for q in receiver.got["/v1/logs"] for rs in q.resource_logs for sl in rs.scope_logs for r in sl.log_records]


def plain(value: Any) -> Any:
    """An AnyValue as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return {v.key: plain(v.value) for v in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


@pytest.mark.parametrize(
    ("mode", "on_spans", "on_events"),
    [
        (None, False, False),
        ("NO_CONTENT", False, False),
        ("SPAN_ONLY", True, False),
        ("EVENT_ONLY", False, True),
        ("SPAN_AND_EVENT", True, True),
    ],
)
def test_content_goes_where_it_was_asked_for(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, mode: str | None, on_spans: bool, on_events: bool
) -> None:
    if mode is not None:
        monkeypatch.setenv(CAPTURE_VARIABLE, mode)
    sent([captured()], redact=hide)
    client = next(span for span in spans(receiver) if span.name == "chat m:1")
    told = attributes(client)
    assert all((name in told) is on_spans for name in MESSAGES)
    if on_spans:
        assert json.loads(told["gen_ai.input.messages"])[0]["parts"][0]["content"] == "my password is [hidden]"
    events = [log for log in logs(receiver) if log.event_name == "gen_ai.client.inference.operation.details"]
    assert len(events) == on_events
    for event in events:
        whole = {a.key: plain(a.value) for a in event.attributes}
        assert whole["gen_ai.system_instructions"] == [{"type": "text", "content": "be brief"}]
        assert whole["gen_ai.input.messages"] == [
            {"role": "user", "parts": [{"type": "text", "content": "my password is [hidden]"}]}
        ]
        assert whole["gen_ai.output.messages"][0]["parts"][0]["content"] == "So my password is [hidden]!"
        assert whole["gen_ai.request.model"] == "m:1"
        assert whole["gen_ai.usage.output_tokens"] == 6
        assert (event.trace_id, event.span_id) == (client.trace_id, client.span_id)
    everything = b"".join(m.SerializeToString() for kind in receiver.got.values() for m in kind)
    assert b"hunter2" not in everything
    assert (b"password" in everything) is (on_spans or on_events)


def test_the_event_alone_has_no_messages(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT", "true")
    sent([captured()], redact=hide)
    (event,) = [log for log in logs(receiver) if log.event_name == "gen_ai.client.inference.operation.details"]
    names = {a.key for a in event.attributes}
    assert "gen_ai.request.model" in names
    assert not names & set(MESSAGES)


def test_without_a_redactor_no_content_leaves(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPTURE_VARIABLE, "SPAN_AND_EVENT")
    export = sent([captured()])
    assert not export.wants_content
    assert b"password" not in b"".join(m.SerializeToString() for kind in receiver.got.values() for m in kind)


@pytest.mark.parametrize(
    ("mode", "signals", "wanted"),
    [("SPAN_ONLY", "traces", True), ("SPAN_ONLY", "logs", False), ("EVENT_ONLY", "logs", True), ("EVENT_ONLY", "traces", False)],
)
def test_content_is_captured_only_for_a_signal_that_carries_it(
    monkeypatch: pytest.MonkeyPatch, mode: str, signals: str, wanted: bool
) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{signals.upper()}_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(CAPTURE_VARIABLE, mode)
    assert Export(Metrics(), "http://127.0.0.1:11434", "0", hide).wants_content is wanted


def test_content_captured_for_export_alone_goes_no_further(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sinks behind (ring, store, page) see the record without it."""
    monkeypatch.setenv(CAPTURE_VARIABLE, "SPAN_ONLY")
    export = Export(Metrics(), "http://127.0.0.1:11434", "0", hide, content_is_ours=True)
    one = captured()
    export.start()
    export.closed(one)
    export.close(20)
    assert b"password is [hidden]" in b"".join(m.SerializeToString() for m in receiver.got["/v1/traces"])
    assert one.captured_request is None
    assert one.captured_answer is None
    assert one.opened is not None
    assert one.opened.asked is not None
    assert one.opened.asked.messages == ()
    assert one.trace_id is not None


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


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Failed to export spans batch code: 413, reason: Request Entity Too Large",
            "the receiver answers 413 Request Entity Too Large",
        ),
        (
            "Transient error HTTPConnectionPool(host='127.0.0.1', port=1): Max retries exceeded with url: /v1/traces (Caused by "
            "NewConnectionError(\"HTTPConnection(host='127.0.0.1', port=1): Failed to establish a new connection: [Errno 111] "
            'Connection refused")) encountered while exporting spans batch, retrying in 1.00s.',
            "the receiver cannot be reached: Connection refused",
        ),
        (
            "Transient error Too Many Requests encountered while exporting spans batch, retrying in 1.00s.",
            "the receiver answers Too Many Requests",
        ),
        ("Failed to export spans batch due to timeout, max retries or shutdown.", "the receiver does not answer in time"),
        ("Dropping span batch: too large", "Dropping span batch: too large"),
    ],
)
def test_the_exporters_words_are_put_plainly(said: str, words: str) -> None:
    assert reason(said) == words
