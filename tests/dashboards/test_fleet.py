"""The fleet's files are sound and in the names table's language; its views run on our own spans in the exporter's layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.findings import Finding
from qm_proxy.measure.series import pack
from qm_proxy.record import Chunks, InterToken, Record, ToolCallSeen
from qm_proxy.telemetry.names import ATTRIBUTES, EVENTS, attribute
from qm_proxy.telemetry.spans import Spans

MS = 1_000_000
START_NS = 1_790_000_000_000_000_000
LAYOUT = """
CREATE TABLE otel_traces (
    Timestamp DateTime64(9), TraceId String, SpanId String, ParentSpanId String, TraceState String,
    SpanName LowCardinality(String), SpanKind LowCardinality(String), ServiceName LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String), ScopeName String, ScopeVersion String,
    SpanAttributes Map(LowCardinality(String), String), Duration UInt64,
    StatusCode LowCardinality(String), StatusMessage String,
    Events Nested (Timestamp DateTime64(9), Name LowCardinality(String), Attributes Map(LowCardinality(String), String)),
    Links Nested (TraceId String, SpanId String, TraceState String, Attributes Map(LowCardinality(String), String))
) ENGINE = MergeTree() PARTITION BY toDate(Timestamp) ORDER BY (ServiceName, SpanName, toDateTime(Timestamp), Timestamp)
"""
"""The columns of the Collector's ClickHouse exporter (without codecs and indexes), with its default settings."""


@pytest.fixture(scope="module")
def fleet(dashboards: Path) -> Path:
    return dashboards / "fleet"


def parsed(path: Path) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text())


def test_each_part_of_a_pipeline_is_configured(fleet: Path) -> None:
    config = parsed(fleet / "collector.yaml")
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in config["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        assert pipeline["processors"][-1] == "batch"
        for part, names in pipeline.items():
            used[part] |= set(names)
    assert {part: set(config[part]) for part in used} == used
    assert "tail_sampling" not in config["service"]["pipelines"]["metrics"]["processors"]


def test_a_trace_with_a_finding_is_kept(fleet: Path) -> None:
    """The condition names the attribute that our spans bear, in the default profile."""
    policies = parsed(fleet / "collector.yaml")["processors"]["tail_sampling"]["policies"]
    (finding,) = [p for p in policies if p["name"] == "findings"]
    assert finding["type"] == "ottl_condition"
    assert finding["ottl_condition"]["span"] == [f'attributes["{attribute("findings")}"] != nil']


def test_compose_mounts_files_that_are_there(fleet: Path) -> None:
    compose = parsed(fleet / "compose.yaml")
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.]*", service["image"]), f"{name}: a tag that stays what it is"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (fleet / source).exists(), f"{name}: {source}"
        assert {c["source"] for c in service.get("configs", [])} <= set(compose["configs"])
        assert set(service.get("depends_on", {})) <= set(compose["services"])
    config = parsed(fleet / "collector.yaml")
    assert compose["services"]["collector"]["volumes"][0].startswith("./collector.yaml:")
    for exporter in config["exporters"].values():
        host = re.match(r"\w+://([\w-]+):", exporter["endpoint"])
        assert host is not None
        assert host[1] in compose["services"]


def test_views_ask_for_attributes_of_the_names_table(fleet: Path) -> None:
    sql = (fleet / "clickhouse.sql").read_text()
    names = {a.current for a in ATTRIBUTES.values()}
    asked = set(re.findall(r"(?:SpanAttributes|event)\['([^']+)'\]", sql))
    assert len(asked) > 15
    assert asked <= names
    assert f"event_name = '{EVENTS['finding']}'" in sql


def test_the_page_names_each_view(fleet: Path) -> None:
    views = set(re.findall(r"VIEW (qm_\w+) AS", (fleet / "clickhouse.sql").read_text()))
    assert views == set(re.findall(r"^\| `(qm_\w+)`", (fleet / "README.md").read_text(), re.MULTILINE))


# --- the views on chdb ------------------------------------------------------------------------------------------------


def record(n: int, model: str, gap_ms: int, **changed: Any) -> Record:
    """An answer of eleven chunks `gap_ms` apart, the first after 100 ms."""
    times = [100 * MS + i * gap_ms * MS for i in range(11)]
    gap = gap_ms / 1000
    plain: dict[str, Any] = {
        "id": f"exchange-{n}",
        "started_at": "2026-09-21T14:13:20Z",
        "method": "POST",
        "route": "/api/chat",
        "dialect": "ollama",
        "operation": "chat",
        "model": model,
        "response_model": model,
        "streamed": True,
        "http_status": 200,
        "ending": "complete",
        "session_id": "s",
        "session_source": "new",
        "turn": 1,
        "client": "aider",
        "user_agent": "litellm/1",
        "origin": "client",
        "ttft_s": 0.1,
        "ttft_content_s": 0.1,
        "queue_s": 0.0,
        "load_s": 0.0,
        "prefill_s": 0.1,
        "decode_s": 10 * gap,
        "client_wait_s": 0.0,
        "unexplained_s": 0.0,
        "total_s": 0.1 + 10 * gap,
        "slow_because": None,
        "itl": InterToken(n=10, mean_s=gap, p50_s=gap, p90_s=gap, p99_s=gap, max_s=gap),
        "tokens_per_s": 1 / gap,
        "rate_source": "server",
        "input_tokens": 7,
        "output_tokens": 11,
        "chunks": 11,
        "thinking_chunks": 0,
        "context_window_tokens": 4096,
        "finish_reason": "stop",
        "tool_calls": [],
        "findings": [],
        "bytes_in": 1,
        "bytes_out": 1,
        "written_lag_s": None,
        "proxy_overhead_s": None,
        "trace_id": None,
        "series": Chunks(
            n=11,
            start_unix_ns=START_NS + n * 1_000_000_000,
            resolution_ns=100_000,
            arrival=pack(times, resolution_ns=100_000),
            written=None,
            kinds=[("text", 11)],
            coalesced=[],
        ),
    }
    return Record(**(plain | changed))


def rows(host: str, records: list[Record]) -> list[dict[str, Any]]:
    """The exporter's rows of the spans that these records become."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "qm-proxy", "host.name": host}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    spans = Spans(provider.get_tracer("qm_proxy", "0"), "genai-current")
    for one in records:
        spans.build(one)
    found = []
    for span in kept.get_finished_spans():
        assert span.context is not None
        assert span.start_time is not None
        assert span.end_time is not None
        found.append(
            {
                "Timestamp": moment(span.start_time),
                "TraceId": f"{span.context.trace_id:032x}",
                "SpanId": f"{span.context.span_id:016x}",
                "ParentSpanId": f"{span.parent.span_id:016x}" if span.parent else "",
                "SpanName": span.name,
                "SpanKind": span.kind.name.capitalize(),
                "ServiceName": "qm-proxy",
                "ResourceAttributes": texts(span.resource.attributes),
                "ScopeName": "qm_proxy",
                "SpanAttributes": texts(span.attributes),
                "Duration": span.end_time - span.start_time,
                "StatusCode": span.status.status_code.name.capitalize(),
                "StatusMessage": span.status.description or "",
                "Events.Timestamp": [moment(event.timestamp) for event in span.events],
                "Events.Name": [event.name for event in span.events],
                "Events.Attributes": [texts(event.attributes) for event in span.events],
            }
        )
    return found


def moment(ns: int) -> str:
    """ClickHouse reads a decimal text to the nanosecond."""
    return f"{ns // 10**9}.{ns % 10**9:09d}"


def texts(attributes: Any) -> dict[str, str]:
    """Values as the Collector writes them into a map of texts: arrays and bools as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for k, v in (attributes or {}).items()}


@pytest.mark.slow
def test_the_views_tell_what_the_spans_say(fleet: Path, tmp_path: Path) -> None:
    chdb = pytest.importorskip("chdb.session", reason="chdb is not installed (pip install chdb)")
    stall = Finding("stall", "info", "The stream paused.", 0, chunk=5, t_s=0.3)
    loop = Finding("loop.token", "violation", "The answer repeats itself.", 0, tokens_wasted=40, t_s=0.4)
    bad = Finding("tool.unknown", "violation", "An invented tool.", 0, t_s=0.4)
    call = ToolCallSeen("c1", "bash", 0.3, 10, False, ["unknown"])
    first = [
        record(1, "fast", 10),
        record(2, "fast", 10, findings=[loop, stall]),
        record(3, "slow", 80, slow_because="memory", tool_calls=[call], findings=[bad]),
        record(4, "fast", 10, origin="probe", findings=[loop]),
    ]
    second = [
        record(5, "fast", 40),
        record(6, "slow", 80, ending="upstream_truncated", http_status=200, output_tokens=None, findings=[stall]),
    ]
    filled = [*rows("north", first), *rows("south", second)]
    data = tmp_path / "spans.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in filled))
    session = chdb.Session(str(tmp_path / "chdb"))

    def ask(sql: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(str(session.query(sql, "JSON")))["data"]
        return found

    try:
        session.query("CREATE DATABASE otel")
        session.query("USE otel")
        session.query(LAYOUT)
        session.query("SET input_format_import_nested_json = 0")
        columns = ", ".join(f"`{name}`" for name in filled[0])
        session.query(f"INSERT INTO otel_traces ({columns}) SELECT {columns} FROM file('{data}', JSONEachRow, '{structure()}')")
        assert ask("SELECT count() AS n FROM otel_traces")[0]["n"] in (len(filled), str(len(filled)))
        bare = re.sub(r"^--.*$", "", (fleet / "clickhouse.sql").read_text(), flags=re.MULTILINE)
        for statement in filter(None, map(str.strip, bare.split(";"))):
            session.query(statement)

        league = {(row["model"], row["host"]): row for row in ask("SELECT * FROM qm_league")}
        assert set(league) == {("fast", "north"), ("fast", "south"), ("slow", "north"), ("slow", "south")}
        north = league["fast", "north"]
        assert int(north["operations"]) == 2  # the probe's is left out
        assert north["tokens_per_s_p50"] == pytest.approx(100, rel=1e-3)
        assert league["fast", "south"]["tokens_per_s_p50"] == pytest.approx(25, rel=1e-3)
        assert north["ttft_p50_s"] == pytest.approx(0.1)
        assert int(north["tokens_out"]) == 22
        assert (int(north["with_loops"]), int(north["with_stalls"]), int(north["with_tool_faults"])) == (1, 1, 0)
        assert (int(league["slow", "north"]["calls"]), int(league["slow", "north"]["with_tool_faults"])) == (1, 1)
        assert (int(league["slow", "south"]["failures"]), int(north["failures"])) == (1, 0)
        assert league["slow", "south"]["tokens_per_s_p50"] is None  # unknown is no 0

        slowest = ask("SELECT * FROM qm_slowest LIMIT 2")
        assert {row["model"] for row in slowest} == {"slow"}
        assert slowest[0]["total_s"] == pytest.approx(0.9)
        assert "memory" in {row["slow_because"] for row in slowest}

        counted = {(r["host"], r["model"], r["kind"]): int(r["found"]) for r in ask("SELECT * FROM qm_findings_by_host_model")}
        assert counted == {
            ("north", "fast", "loop.token"): 1,
            ("north", "fast", "stall"): 1,
            ("north", "slow", "tool.unknown"): 1,
            ("south", "slow", "stall"): 1,
        }
        told = ask("SELECT summary, tokens_wasted FROM qm_findings WHERE kind = 'loop.token' AND origin = 'client'")
        assert [(row["summary"], int(row["tokens_wasted"])) for row in told] == [("The answer repeats itself.", 40)]

        gaps = {(row["model"], row["host"]): row for row in ask("SELECT * FROM qm_gaps")}
        assert int(gaps["fast", "north"]["n"]) == 20
        assert gaps["fast", "north"]["p50_below_s"] == pytest.approx(2**14 / 1e6)  # 10 ms lies below 16.4 ms
        assert gaps["slow", "north"]["p99_below_s"] == pytest.approx(2**17 / 1e6)
    finally:
        session.close()


def structure() -> str:
    """Types of the file's columns, nested ones flattened."""
    text = "Map(String, String)"
    return (
        "Timestamp DateTime64(9), TraceId String, SpanId String, ParentSpanId String, SpanName String, SpanKind String, "
        f"ServiceName String, ResourceAttributes {text}, ScopeName String, SpanAttributes {text}, Duration UInt64, "
        "StatusCode String, StatusMessage String, "
        f"`Events.Timestamp` Array(DateTime64(9)), `Events.Name` Array(String), `Events.Attributes` Array({text})"
    )
