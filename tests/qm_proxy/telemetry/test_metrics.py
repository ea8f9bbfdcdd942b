"""The aggregate counts what passed, within bounds, and the page says it in both formats."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from qm_proxy.events import Nanoseconds
from qm_proxy.findings import Finding
from qm_proxy.measure.series import pack
from qm_proxy.record import Chunks, Opened, Record, ToolCallSeen
from qm_proxy.telemetry.metrics import SERIES_MAX, Histogram, Metrics
from qm_proxy.telemetry.names import METRICS
from qm_proxy.telemetry.prometheus import page

MS = 1_000_000


def record(**changed: Any) -> Record:
    times = [100 * MS, 116 * MS, 132 * MS, 132 * MS, 332 * MS]
    series = Chunks(
        n=5,
        start_unix_ns=0,
        resolution_ns=100_000,
        arrival=pack(times, resolution_ns=100_000),
        written=None,
        kinds=[("text", 5)],
        coalesced=[3],
    )
    plain: dict[str, Any] = {
        "id": "x",
        "started_at": "2026-11-24T10:00:00Z",
        "method": "POST",
        "route": "/api/chat",
        "dialect": "ollama",
        "operation": "chat",
        "model": "m:1",
        "response_model": "m:1",
        "streamed": True,
        "http_status": 200,
        "ending": "complete",
        "session_id": None,
        "session_source": None,
        "turn": None,
        "client": "aider",
        "user_agent": None,
        "origin": "client",
        "ttft_s": 0.1,
        "ttft_content_s": 0.1,
        "queue_s": 0.0,
        "load_s": 0.01,
        "prefill_s": 0.08,
        "decode_s": 0.24,
        "client_wait_s": 0.0,
        "unexplained_s": 0.01,
        "total_s": 0.34,
        "slow_because": None,
        "itl": None,
        "tokens_per_s": 50.0,
        "rate_source": "server",
        "input_tokens": 26,
        "output_tokens": 6,
        "chunks": 5,
        "thinking_chunks": 0,
        "context_window_tokens": None,
        "finish_reason": "stop",
        "tool_calls": [ToolCallSeen("c", "bash", 0.2, 10, True)],
        "findings": [Finding("stall", "suspect", "a stall", 0, tokens_wasted=3)],
        "bytes_in": 1,
        "bytes_out": 1,
        "written_lag_s": None,
        "proxy_overhead_s": 0.00004,
        "trace_id": None,
        "series": series,
    }
    return Record(**(plain | changed))


def _families(metrics: Metrics) -> dict[str, Any]:
    text = page(metrics, "text/plain").body.decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_gaps_go_into_fine_buckets_without_coalesced_ones() -> None:
    metrics = Metrics()
    metrics.closed(record())
    (histogram,) = metrics._values["chunk_gap"].values()
    assert isinstance(histogram, Histogram)
    assert histogram.n == 3
    filled = {bound for bound, count in zip((*METRICS["chunk_gap"].buckets, None), histogram.counts, strict=True) if count}
    assert filled == {0.02, 0.25}


def test_a_page_that_a_scraper_can_read() -> None:
    metrics = Metrics()
    metrics.closed(record())
    metrics.watch("in_flight", lambda: {(): 2.0})
    families = _families(metrics)
    durations = families["gen_ai_client_operation_duration_seconds"]
    assert next(s.value for s in durations.samples if s.name.endswith("_count")) == 1
    assert next(s.labels for s in durations.samples)["gen_ai_request_model"] == "m:1"
    assert families["qm_in_flight"].samples[0].value == 2
    assert families["qm_tokens"].samples[0].name == "qm_tokens_total"
    kinds = {s.labels["gen_ai_token_type"]: s.value for s in families["qm_tokens"].samples}
    assert kinds == {"input": 26, "output": 6}
    assert families["qm_findings"].samples[0].labels["qm_finding"] == "stall"


def test_a_finding_is_counted_when_it_is_told_and_once() -> None:
    metrics = Metrics()
    told = Finding("loop.token", "violation", "a loop", 0, tokens_wasted=7, exchange_id="x")
    late = Finding("stall", "info", "a pause", 0, exchange_id="x")
    closed = record(findings=[told, late])
    at = Nanoseconds(0)
    opened = Opened(
        closed.id, at, closed.started_at, "POST", "/api/chat", "ollama", "chat", "m:1", True, "aider", None, "client", None
    )
    metrics.opened(opened)
    told.exchange_id = late.exchange_id = closed.id

    def counted() -> dict[str, float]:
        return {s.labels["qm_finding"]: s.value for s in _families(metrics)["qm_findings"].samples}

    metrics.found(told)
    metrics.found(Finding("stall", "info", "of an exchange that nobody saw open", 0, exchange_id="y"))
    assert counted() == {"loop.token": 1}
    metrics.closed(closed)
    assert counted() == {"loop.token": 1, "stall": 1}
    assert metrics._values["wasted"] == {("loop.token", "m:1", "client"): 7}
    assert not metrics._open


def test_unknown_is_not_counted_as_zero() -> None:
    metrics = Metrics()
    metrics.closed(record(input_tokens=None, output_tokens=None, ttft_s=None, tokens_per_s=None, load_s=None))
    families = _families(metrics)
    assert "qm_tokens" not in families
    assert "qm_first_token_seconds" not in families
    assert {s.labels["qm_reason"] for s in families["qm_phase_time_seconds"].samples if s.name.endswith("_total")} == {
        "queue",
        "prefill",
        "decode",
        "client_wait",
        "unexplained",
    }


def test_exemplars_in_openmetrics_only() -> None:
    metrics = Metrics()
    metrics.closed(record(trace_id="ab" * 16))
    modern = page(metrics, "application/openmetrics-text; version=1.0.0")
    assert b'# {trace_id="abab' in modern.body
    assert modern.body.rstrip().endswith(b"# EOF")
    assert b"trace_id" not in page(metrics, "text/plain").body


def test_invented_models_do_not_fill_memory() -> None:
    metrics = Metrics()
    for n in range(SERIES_MAX + 50):
        metrics.closed(record(model=f"model-{n}"))
    assert len(metrics._values["exchanges"]) == SERIES_MAX + 1
    assert metrics._values["exchanges"][("other",) * 4] == 50


def test_other_routes_count_as_http_only() -> None:
    metrics = Metrics()
    metrics.closed(record(operation=None, dialect="other", route="/api/blobs/sha256:12", series=None, http_status=201))
    families = _families(metrics)
    assert "qm_exchanges" not in families
    assert families["http_server_request_duration_seconds"].samples[0].labels["http_route"] == "/api/blobs/:digest"


def test_what_the_board_tells_apart() -> None:
    """Probes by origin on every count; finish reasons; the window's fill; the cached part of the prompt; the server's total."""
    metrics = Metrics()
    call = ToolCallSeen(id="c", name="bash", t_s=0.2, argument_bytes=10, valid=False, problems=["/x"])
    metrics.closed(
        record(
            origin="probe",
            tool_calls=[call],
            finish_reason="length",
            context_window_tokens=64,
            cached_tokens=20,
            server_total_s=0.3,
        )
    )
    families = _families(metrics)
    for name in ("qm_findings", "qm_tool_calls", "qm_finishes", "qm_tokens"):
        assert {s.labels["qm_origin"] for s in families[name].samples} == {"probe"}
    assert families["qm_finishes"].samples[0].labels["gen_ai_response_finish_reasons"] == "length"
    fill = next(s.value for s in families["qm_context_fill"].samples if s.name.endswith("_sum"))
    assert fill == (26 + 6) / 64
    kinds = {s.labels["gen_ai_token_type"]: s.value for s in families["qm_tokens"].samples}
    assert kinds["cached"] == 20
    assert next(s.value for s in families["gen_ai_server_request_duration_seconds"].samples if s.name.endswith("_sum")) == 0.3
    assert families["qm_self_parser_fallbacks"].samples[0].value == 0
