"""One loop, four places: a looping agent session is one clear finding in terminal, store, metrics and trace. And while it runs:
a finding is told before the stream that shows it goes on to its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import os
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from qm_proxy.demo.clients import play
from qm_proxy.demo.scenes import faults
from qm_proxy.errors import QmError
from qm_proxy.servant import READY, Servant, ask

KIND = "loop.trajectory"


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps the spans it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Any] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            assert isinstance(self.server, Receiver)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_looping_agent_is_one_finding_everywhere(make_sim: Callable[..., Any], receiver: Receiver, tmp_path: Path) -> None:
    sim = make_sim(personas=["agent-looper"], speed=8.0)
    db = tmp_path / "qm.db"
    flags = ["--upstream", sim.url, "--listen", "127.0.0.1:0", "--console", "127.0.0.1:0", "--db", str(db)]
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_address[1]}",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    serving = subprocess.Popen(
        [sys.executable, "-m", "qm_proxy", "serve", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        ready = None
        while ready is None:
            line = serving.stdout.readline()
            assert line, "it ended before it was ready"
            ready = READY.match(line.strip())
        console = ready["console"]
        follower = urllib.request.urlopen(f"{console}/api/v1/events", timeout=60)  # somebody looks on till the end
        scene = next(scene for scene in faults(9) if scene.expects == KIND)
        asyncio.run(play(ready["proxy"], scene, "looping"))
        rows: list[dict[str, Any]] = []
        while len(rows) < scene.turns:
            rows = [row for row in ask(console, "/api/v1/exchanges")["items"] if row["ending"] and row["operation"]]
        with urllib.request.urlopen(f"{console}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        session = None
        while session is None:  # stored with the next batch
            with contextlib.suppress(QmError):
                session = ask(console, f"/api/v1/sessions/{rows[0]['session_id']}")
    finally:
        serving.terminate()
        terminal, errors = serving.communicate(timeout=60)
    with follower:
        assert b"event: exchange.closed" in follower.read()
    assert errors == ""
    assert len({row["session_id"] for row in rows}) == 1

    told = [line for line in terminal.splitlines() if KIND in line]
    assert len(told) == 1, terminal

    with sqlite3.connect(db) as stored:
        found = stored.execute("select exchange_id, kind, summary from findings").fetchall()
    assert [kind for _, kind, _ in found] == [KIND]
    exchange_id, _, summary = found[0]
    assert summary in told[0]
    assert [f["kind"] for row in rows for f in row["findings"]] == [KIND]
    assert session["id"] == rows[0]["session_id"]

    counted = [line for line in metrics.splitlines() if line.startswith("qm_findings_total{") and KIND in line]
    assert [float(line.rpartition(" ")[2]) for line in counted] == [1.0]

    marked = [
        (span, event)
        for span in receiver.spans
        for event in span.events
        if event.name == "qm.finding" and any(a.key == "qm.finding" and a.value.string_value == KIND for a in event.attributes)
    ]
    assert len(marked) == 1
    assert exchange_id in str(marked[0][0])


def test_a_finding_is_told_while_the_stream_runs_on(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> None:
    """The console tells of the loop while the answer is far from its end."""
    proxy = serving(make_sim(personas=["looper"], speed=1.0).url)
    assert proxy.console is not None
    console, url = urlsplit(proxy.console), urlsplit(proxy.proxy)
    feed = http.client.HTTPConnection(console.hostname or "", console.port or 0, timeout=60)
    feed.request("GET", "/api/v1/events")
    events = feed.getresponse()
    client = http.client.HTTPConnection(url.hostname or "", url.port or 0, timeout=60)
    body = {"model": "looper", "messages": [{"role": "user", "content": "go on"}], "options": {"num_predict": 600}}
    client.request("POST", "/api/chat", json.dumps(body), {"Content-Type": "application/json"})
    answer = client.getresponse()
    order: list[str] = []
    finding: dict[str, Any] = {}
    reading = threading.Thread(target=lambda: list(iter(lambda: answer.read1(65536), b"")))
    reading.start()
    name = ""
    while "exchange.closed" not in order:
        line = events.readline().decode().strip()
        name = line[7:] if line.startswith("event: ") else name
        if line.startswith("data: ") and name in ("finding", "exchange.closed", "exchange.progress"):
            data = json.loads(line[6:])
            if name == "finding" and data["kind"] != "loop.token":
                continue  # a busy machine pauses streams by itself
            order.append(name)
            if name == "finding":
                finding = data
            elif name == "exchange.closed":
                closed = data
    reading.join(60)
    feed.close()
    client.close()
    assert order.count("finding") == 1
    told = order.index("finding")
    assert order[told:].count("exchange.progress") >= 3, "the stream ran on behind it"
    assert finding["chunk"] < closed["chunks"] - 100
