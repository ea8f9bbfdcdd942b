"""What a stored exchange costs, and how fast the questions are answered when there are many.

    python benchmarks/bench_store.py [--exchanges 100000] [--tokens-per-exchange 100] [--db FILE] [--rounds 60]

Made up: sessions of some 20 turns, models and clients of unequal popularity, lognormal gaps around 10 ms with stalls, 3 % of
exchanges with a finding. Written through the Writer as in service; asked through `Stored` on a connection of its own: once while the
file rests, once while another process writes 50 exchanges of 100 tokens a second into it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from qm_proxy.findings import Finding
from qm_proxy.ids import Ids
from qm_proxy.measure.series import RESOLUTION_NS, pack, pack_lags
from qm_proxy.measure.wall_clock import iso
from qm_proxy.record import Chunks, InterToken, Opened, Placed, Prefix, Record, ToolCallSeen
from qm_proxy.store.database import open_for_reading
from qm_proxy.store.retention import sizes
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.views import VIEWS
from qm_proxy.store.writer import Writer

MODELS = ("qwen3-coder:30b", "gpt-oss:20b", "llama3.2:latest", "mistral-small:24b", "glm-4.7-flash", "tiny:latest")
CLIENTS = ("claude-code", "opencode", "codex", "aider", "ollama-python", "unknown")
KINDS = ("stall", "loop.token", "tool.schema", "context.truncated", "cache.broken", "model.reload", "tool.unknown")


class Traffic:
    """Records as the observer makes them, one after the other, `step_s` apart."""

    def __init__(self, seed: int, tokens: int, start_unix_s: float, step_s: float) -> None:
        self.random = random.Random(seed)
        self.ids = Ids()
        self.tokens = tokens
        self.now_ns = int(start_unix_s * 1e9)
        self.step_ns = int(step_s * 1e9)
        self.sessions: list[tuple[str, str, str, int]] = []
        self.shapes = [self._series(n) for n in (0, 8, 20, 40, 60, 80, 100, 150, 250, 400) for _ in range(20)]
        mean = statistics.mean(n for n, _, _ in self.shapes)
        self.shapes = [self._series(max(1, round(n * tokens / mean))) for n, _, _ in self.shapes]

    def _series(self, n: int) -> tuple[int, bytes, bytes]:
        t, arrivals, lags = 400_000_000, [], []
        for _ in range(n):
            gap = self.random.lognormvariate(16.1, 0.25)
            t += round(gap * (20 if self.random.random() < 0.003 else 1))
            arrivals.append(t)
            lags.append(round(self.random.lognormvariate(10.3, 0.4)))
        return n, pack(arrivals), pack_lags(lags)

    def record(self) -> Record:
        rng = self.random
        self.now_ns += self.step_ns
        identifier, started = self.ids.new(self.now_ns), iso(self.now_ns)
        if len(self.sessions) < 20 or rng.random() < 0.05:
            client = rng.choices(CLIENTS, (30, 25, 15, 10, 8, 2))[0]
            model = rng.choices(MODELS, (40, 25, 15, 10, 6, 1))[0]
            self.sessions.append((self.ids.new(self.now_ns), client, model, 0))
            self.sessions = self.sessions[-20:]
        i = rng.randrange(len(self.sessions))
        session, client, model, turn = self.sessions[i]
        self.sessions[i] = (session, client, model, turn + 1)
        n, arrival, lags = rng.choice(self.shapes)
        placed = Placed(
            session, "header", "next" if turn else "start", 0, turn + 1, new_messages=2, wait_s=1.5, waited_for="tools",
            client_session="ses_df8a6662bffepFi0AoqWbo1HQ1", model_s=2.0, tip=rng.getrandbits(60), expected=rng.getrandbits(60),
            prefix=Prefix(40_000, 40_000, 42_000, 20, 20) if turn else None,
        )  # fmt: skip
        calls = [ToolCallSeen(f"call_{rng.getrandbits(32):08x}", rng.choice(("bash", "read", "edit")), 1.2, 120, True)]
        findings: list[Finding] = []
        if rng.random() < 0.03:
            kind: Any = rng.choices(KINDS, (40, 10, 20, 5, 15, 9, 1))[0]
            evidence: dict[str, object] = {"cause": "unknown", "gap_s": 0.4}
            summary = "An inter-token gap of 0.4 s, 31 times its neighbours."
            findings = [
                Finding(kind, "suspect", summary, 0, evidence, 12, None, self.ids.new(self.now_ns), identifier, session, 1.5)
            ]
        opened = Opened(
            identifier, self.now_ns, started, "POST", "/v1/chat/completions", "openai-chat", "chat", model, True, client,
            f"{client}/1.18.33 ai-sdk/provider-utils/4.0.23 runtime/bun/1.3.14", "client", None, placed=placed,
        )  # fmt: skip
        return Record(
            id=identifier, started_at=started, method="POST", route="/v1/chat/completions", dialect="openai-chat", operation="chat",
            model=model, response_model=model, streamed=True, http_status=200, ending="complete", session_id=session,
            session_source="header", turn=turn + 1, client=client, user_agent=opened.user_agent, origin="client",
            ttft_s=rng.random(), ttft_content_s=rng.random(), queue_s=None, load_s=None, prefill_s=rng.random(), decode_s=rng.random(),
            client_wait_s=0.01, unexplained_s=0.002, total_s=rng.random() * 4, slow_because=None,
            itl=InterToken(n, *(rng.random() for _ in range(5))), tokens_per_s=97.123, rate_source="client", input_tokens=9000,
            output_tokens=n, chunks=n, thinking_chunks=n // 3, context_window_tokens=32768, finish_reason="tool_calls",
            tool_calls=calls if rng.random() < 0.6 else [], findings=findings, bytes_in=41_000, bytes_out=30_000, written_lag_s=0.0001,
            proxy_overhead_s=0.00003, trace_id=f"{rng.getrandbits(128):032x}", opened=opened,
            series=Chunks(n, self.now_ns, RESOLUTION_NS, arrival, lags, [("thinking", n // 3), ("text", n - n // 3)], []),
        )  # fmt: skip


def fill(path: Path, exchanges: int, tokens: int) -> None:
    traffic = Traffic(1, tokens, time.time() - exchanges, 1.0)
    writer = Writer(path, queue_bytes=1 << 30)
    writer.start()
    spent = 0.0
    for i in range(exchanges):
        record = traffic.record()
        began = time.perf_counter()
        assert record.opened is not None
        writer.opened(record.opened)
        writer.closed(record)
        spent += time.perf_counter() - began
        if i % 5000 == 4999:
            writer.flush(60)
    began = time.perf_counter()
    assert writer.flush(60)
    assert writer.stop(60)
    status = writer.status()
    print(f"writing: {spent / exchanges * 1e6:.0f} µs per exchange in the caller, {status['rows'] / exchanges:.1f} rows each, "
          f"dropped {status['dropped']}, rejected {status['rejected']}")  # fmt: skip


def cost(path: Path) -> None:
    connection = open_for_reading(path)
    exchanges, tokens, blobs = connection.execute(
        "select count(*), sum(n), sum(length(arrival) + coalesce(length(written), 0) + length(kinds)) from chunks"
    ).fetchone()
    size = sizes(connection)
    print(f"stored: {exchanges} exchanges, {tokens / 1e6:.1f} M tokens, {size.file / 1e6:.0f} MB")
    print(
        f"        {blobs / tokens:.2f} bytes per token (arrivals and writes), {(size.used - blobs) / exchanges:.0f} bytes per exchange"
    )


def measure(name: str, rounds: int, ask: Callable[[], Any]) -> float:
    """Wall and CPU time of this thread: on a busy machine only the second is the question's own. Answers with the wall p95."""
    times: list[float] = []
    spent: list[float] = []
    for _ in range(rounds):
        began, cpu = time.perf_counter(), time.thread_time()
        ask()
        times.append((time.perf_counter() - began) * 1e3)
        spent.append((time.thread_time() - cpu) * 1e3)
    p95 = _p95(times)
    print(f"  {name:58}{statistics.median(times):9.2f}{p95:9.2f}{max(times):9.2f}{_p95(spent):9.2f}")
    return p95


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, round(0.95 * len(values)))]


def ask(path: Path, rounds: int) -> None:
    rng = random.Random(2)
    stored = Stored(path)
    connection = open_for_reading(path)
    ids = [row[0] for row in connection.execute("select id from exchanges order by id")]
    sessions = [row[0] for row in connection.execute("select id from sessions")]
    some = lambda: rng.choice(ids)  # noqa: E731
    print(f"  {'milliseconds':58}{'p50':>9}{'p95':>9}{'max':>9}{'CPU p95':>9}")
    worst = [
        measure("exchanges, first page", rounds, lambda: stored.exchanges()),
        measure("exchanges, any page", rounds, lambda: stored.exchanges(cursor=some())),
        measure("exchanges, 500 of any page", rounds, lambda: stored.exchanges(limit=500, cursor=some())),
        measure("exchanges of a model", rounds, lambda: stored.exchanges(model=rng.choice(MODELS), cursor=some())),
        measure("exchanges of a client", rounds, lambda: stored.exchanges(client=rng.choice(CLIENTS), cursor=some())),
        measure("exchanges of a model and a client", rounds,
                lambda: stored.exchanges(model=rng.choice(MODELS), client=rng.choice(CLIENTS), cursor=some())),
        measure("exchanges of a model that there is not, for a client", rounds, lambda: stored.exchanges(model="x", client="aider")),
        measure("exchanges of a session", rounds, lambda: stored.exchanges(session=rng.choice(sessions))),
        measure("exchanges with a kind of finding", rounds, lambda: stored.exchanges(finding=rng.choice(KINDS), cursor=some())),
        measure("exchanges with a family of findings, of a model", rounds,
                lambda: stored.exchanges(finding="tool", model=rng.choice(MODELS), cursor=some())),
        measure("exchanges since an instant", rounds, lambda: stored.exchanges(since="2026-01-01T00:00:00Z")),
        measure("exchange", rounds, lambda: stored.exchange(some())),
        measure("chunks", rounds, lambda: stored.chunks(some())),
        measure("findings, any page", rounds, lambda: stored.findings(cursor=some())),
        measure("findings of a kind", rounds, lambda: stored.findings(kind=rng.choice(KINDS))),
        measure("findings of a family", rounds, lambda: stored.findings(kind="loop")),
        measure("sessions, first page", rounds, lambda: stored.sessions()),
        measure("sessions of a client", rounds, lambda: stored.sessions(client=rng.choice(CLIENTS))),
        measure("sessions of a model", rounds, lambda: stored.sessions(model=rng.choice(MODELS))),
        measure("sessions with a kind of finding", rounds, lambda: stored.sessions(finding=rng.choice(KINDS))),
        measure("session", rounds, lambda: stored.session(rng.choice(sessions))),
        measure("status", rounds, lambda: stored.status()),
    ]  # fmt: skip
    print(f"  worst p95 of a list or show: {max(worst):.1f} ms (to be ≤ 50)")
    views = []
    for name in VIEWS:
        views.append(measure(f"view {name}, first 100 rows", max(3, rounds // 10), lambda: _rows(connection, name)))  # noqa: B023
    print(f"  worst p95 of a view: {max(views):.1f} ms (to be ≤ 200)")


@contextmanager
def traffic_into(path: Path) -> Iterator[None]:
    """Another process writes meanwhile, as the observer does."""
    spawn = multiprocessing.get_context("spawn")
    ready, over = spawn.Event(), spawn.Event()
    writing = spawn.Process(target=_write, args=(path, ready, over), daemon=True)
    writing.start()
    ready.wait()
    try:
        yield
    finally:
        over.set()
        writing.join()


def _write(path: Path, ready: Event, over: Event) -> None:
    traffic = Traffic(3, 100, time.time(), 0.001)
    writer = Writer(path)
    writer.start()
    began, n = time.monotonic(), 0
    ready.set()
    while not over.wait(0.02):
        record = traffic.record()
        assert record.opened is not None
        writer.opened(record.opened)
        writer.closed(record)
        n += 1
    spent = time.monotonic() - began
    writer.stop(60)
    status = writer.status()
    print(f"  written meanwhile: {status['written']} exchanges, {n / spent:.0f} per second, {status['commits']} commits,"
          f" dropped {status['dropped']}")  # fmt: skip


def _rows(connection: sqlite3.Connection, view: str) -> None:
    json.dumps(connection.execute(f"select * from {view} limit 100").fetchall())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--tokens-per-exchange", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--db", type=Path, help="use this file; filled first when it is not there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = args.db or Path(directory) / "qm.db"
        if not path.exists():
            fill(path, args.exchanges, args.tokens_per_exchange)
        cost(path)
        print("asked while the file rests")
        ask(path, args.rounds)
        print("asked while another process writes")
        with traffic_into(path):
            ask(path, args.rounds)


if __name__ == "__main__":
    main()
