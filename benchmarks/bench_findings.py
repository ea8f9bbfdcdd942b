"""How long after the deciding token a finding is told: on the console's event feed, at the terminal, in store and metrics, as a span.

    python benchmarks/bench_findings.py             16 looping streams at 60 tok/s, one after the other; 1½ minutes
    python benchmarks/bench_findings.py --streams N

The real `serve` in front of the simulated Ollama, each a process of its own; one clock (monotonic, this process reads everything).
The deciding token's time is when this client read its chunk, so what is told counts from there. A span is sent when
the answer is over, and counts from its last byte. Promised: 100 ms and 1 s. Needs only loopback.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from qm_proxy.servant import READY

KIND = "loop.token"
PATIENCE_S = 10.0


class Spans(http.server.ThreadingHTTPServer):
    """An OTLP receiver that notes when a span with a finding came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.came: list[float] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        now = time.monotonic()
        assert isinstance(self.server, Spans)
        if self.path == "/v1/traces":
            spans = [s for r in ExportTraceServiceRequest.FromString(body).resource_spans for c in r.scope_spans for s in c.spans]
            self.server.came += [now for span in spans if any(event.name == "qm.finding" for event in span.events)]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Watch:
    """Threads that note when findings came: (monotonic s, finding) on the feed, monotonic s at the terminal."""

    def __init__(self, console: str, terminal: object) -> None:
        self.feed: list[tuple[float, dict[str, object]]] = []
        self.lines: list[float] = []
        url = urlsplit(console)
        events = HTTPConnection(url.hostname or "", url.port or 0)
        events.request("GET", "/api/v1/events?names=finding")
        answer = events.getresponse()
        for target, source in ((self._events, answer), (self._lines, terminal)):
            threading.Thread(target=target, args=(source,), daemon=True).start()

    def _events(self, answer: object) -> None:
        for line in iter(answer.readline, b""):  # type: ignore[attr-defined]
            if line.startswith(b"data: {"):
                now = time.monotonic()
                finding = json.loads(line[6:])
                if finding.get("kind") == KIND:
                    self.feed.append((now, finding))

    def _lines(self, terminal: object) -> None:
        for line in iter(terminal.readline, ""):  # type: ignore[attr-defined]
            if KIND in line:
                self.lines.append(time.monotonic())


class Stored:
    """Notes when the database holds more than `n` findings, from another thread."""

    def __init__(self, db: Path, n: int) -> None:
        self._at: float | None = None
        self._thread = threading.Thread(target=self._look, args=(db, n), daemon=True)
        self._thread.start()

    def _look(self, db: Path, n: int) -> None:
        stored = sqlite3.connect(f"file:{db}?mode=ro", uri=True)
        query = "select count(*) from findings where kind = ?"
        self._at = until(lambda: stored.execute(query, (KIND,)).fetchone()[0] > n)
        stored.close()

    def at(self) -> float | None:
        self._thread.join()
        return self._at


class Counted:
    """Notes when `/metrics` counts more than `n` findings, from another thread; asked each 10 ms."""

    def __init__(self, console: str, n: int) -> None:
        self._at: float | None = None
        self._thread = threading.Thread(target=self._look, args=(urlsplit(console), n), daemon=True)
        self._thread.start()

    def _look(self, url: SplitResult, n: int) -> None:
        peer = HTTPConnection(url.hostname or "", url.port or 0, timeout=10)

        def counted() -> bool:
            peer.request("GET", "/metrics")
            lines = peer.getresponse().read().decode().splitlines()
            time.sleep(0.008)
            return (
                sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("qm_findings_total") and KIND in line) > n
            )

        self._at = until(counted)
        peer.close()

    def at(self) -> float | None:
        self._thread.join()
        return self._at


def stream(proxy: str) -> tuple[list[float], float]:
    """One looping answer: when each record was read, and when it was over."""
    url = urlsplit(proxy)
    client = HTTPConnection(url.hostname or "", url.port or 0, timeout=60)
    body = {"model": "looper", "messages": [{"role": "user", "content": "go on"}], "options": {"num_predict": 240}}
    client.request("POST", "/api/chat", json.dumps(body), {"Content-Type": "application/json"})
    answer = client.getresponse()
    times: list[float] = []
    while piece := answer.read1(65536):
        times += [time.monotonic()] * piece.count(b"\n")
    client.close()
    return times, time.monotonic()


def until(ready: object) -> float | None:
    """When `ready()` first was true, looked at each 2 ms; None after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if ready():  # type: ignore[operator]
            return time.monotonic()
        time.sleep(0.002)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=16)
    args = parser.parse_args()
    receiver = Spans()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_address[1]}",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    took: dict[str, list[float]] = {"event feed": [], "terminal": [], "store": [], "metrics": [], "span": []}
    run = [sys.executable, "-m", "qm_proxy"]
    with tempfile.TemporaryDirectory(prefix="qm-findings-") as directory:
        sim = subprocess.Popen([*run, "sim", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
        assert sim.stdout is not None
        upstream = next(word for word in sim.stdout.readline().split() if word.startswith("http")).rstrip(",")
        db = Path(directory) / "qm.db"
        flags = ["--upstream", upstream, "--listen", "127.0.0.1:0", "--console", "127.0.0.1:0", "--db", str(db)]
        serve = subprocess.Popen([*run, "serve", *flags], env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert serve.stdout is not None
            ready = None
            while ready is None:
                ready = READY.match(serve.stdout.readline().strip())
            watch = Watch(ready["console"], serve.stdout)
            stream(ready["proxy"])  # the first one loads what is loaded late
            until(lambda: len(receiver.came) == 1)
            for n in range(1, args.streams + 1):
                stored, metrics = Stored(db, n), Counted(ready["console"], n)
                times, over = stream(ready["proxy"])
                in_store, in_metrics = stored.at(), metrics.at()
                span = until(lambda: len(receiver.came) > n)  # noqa: B023
                at, finding = watch.feed[n]
                decided = times[int(str(finding["chunk"]))]
                took["event feed"].append(at - decided)
                took["terminal"].append(watch.lines[n] - decided)
                if in_store is not None:
                    took["store"].append(in_store - decided)
                if in_metrics is not None:
                    took["metrics"].append(in_metrics - decided)
                if span is not None:
                    took["span"].append(span - over)
        finally:
            for process in (serve, sim):
                process.terminate()
                process.wait(30)
            receiver.shutdown()
    print("ms after the deciding token (a span: after the answer's last byte)")
    print(f"{'':12} {'n':>4} {'p50':>8} {'p90':>8} {'max':>8}  promised")
    for place, seconds in took.items():
        ms = sorted(1000 * value for value in seconds)
        promised = 100 if place in ("event feed", "terminal") else 1000
        tenths = statistics.quantiles(ms, n=10) if len(ms) > 1 else ms * 9
        print(f"{place:12} {len(ms):4} {statistics.median(ms):8.1f} {tenths[8]:8.1f} {ms[-1]:8.1f}  {promised}")
    missed = any(max(v, default=9e9) > (0.1 if p in ("event feed", "terminal") else 1.0) for p, v in took.items())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
