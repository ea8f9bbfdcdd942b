"""Records as the observer makes them, for everything that stores and asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.events import Nanoseconds
from qm_proxy.findings import Finding
from qm_proxy.ids import Ids
from qm_proxy.measure.series import RESOLUTION_NS, pack, pack_lags
from qm_proxy.measure.wall_clock import iso
from qm_proxy.record import Chunks, InterToken, Opened, Placed, Prefix, Record, ToolCallSeen, Turnaround
from qm_proxy.store.writer import Writer

START_NS = 1_790_000_000 * 10**9


class Records:
    """Makes records one second apart; every field has a value unless it is given as None."""

    def __init__(self) -> None:
        self.ids = Ids()
        self.now_ns = START_NS

    def opened(self, **changes: Any) -> Opened:
        self.now_ns += 10**9
        values: dict[str, Any] = {
            "id": self.ids.new(self.now_ns),
            "t_ns": Nanoseconds(self.now_ns),
            "started_at": iso(self.now_ns),
            "method": "POST",
            "route": "/api/chat",
            "dialect": "ollama",
            "operation": "chat",
            "model": "qwen3:8b",
            "streamed": True,
            "client": "opencode",
            "user_agent": "opencode/1.18",
            "origin": "client",
            "asked": None,
        }
        return Opened(**(values | changes))

    def placed(self, session: str | None = None, **changes: Any) -> Placed:
        values: dict[str, Any] = {
            "session_id": session or self.ids.new(self.now_ns),
            "source": "header",
            "relation": "next",
            "trajectory": 0,
            "turn": 3,
            "parent_trajectory": None,
            "previous_exchange_id": None,
            "client_session": "ses_1",
            "new_messages": 2,
            "wait_s": 1.5,
            "waited_for": "tools",
            "results": [],
            "prefix": Prefix(1000, 900, 1200, 10, 9, "message", 9, "user", 12, ("a", "b"), 40, 0.5),
            "model_s": 2.0,
            "tip": 1234,
            "expected": 5678,
        }
        return Placed(**(values | changes))

    def finding(self, kind: str = "stall", **changes: Any) -> Finding:
        values: dict[str, Any] = {
            "kind": kind,
            "severity": "suspect",
            "summary": "A gap of 0.4 s.",
            "t_ns": self.now_ns,
            "evidence": {"cause": "unknown", "excerpt": "x" * 200},
            "chunk": 2,
            "tokens_wasted": 7,
        }
        return Finding(**(values | changes))

    def record(
        self, opened: Opened | None = None, *, findings: list[Finding] | None = None, chunks: int = 5, **changes: Any
    ) -> Record:
        opened = opened or self.opened()
        placed = opened.placed
        for finding in findings or []:
            finding.id = finding.id or self.ids.new(self.now_ns)
            finding.exchange_id = opened.id
            finding.session_id = placed.session_id if placed else None
            finding.t_s = 0.7
        values: dict[str, Any] = {
            "id": opened.id,
            "started_at": opened.started_at,
            "method": opened.method,
            "route": opened.route,
            "dialect": opened.dialect,
            "operation": opened.operation,
            "model": opened.model,
            "response_model": opened.model,
            "streamed": True,
            "http_status": 200,
            "ending": "complete",
            "session_id": placed.session_id if placed else None,
            "session_source": placed.source if placed else None,
            "turn": placed.turn if placed else None,
            "client": opened.client,
            "user_agent": opened.user_agent,
            "origin": opened.origin,
            "ttft_s": 0.25,
            "ttft_content_s": 0.5,
            "queue_s": 0.125,
            "load_s": None,
            "prefill_s": 1.0,
            "decode_s": 2.0,
            "client_wait_s": 0.0,
            "unexplained_s": 0.01,
            "total_s": 3.5,
            "slow_because": "prefill",
            "itl": InterToken(4, 0.01, 0.01, 0.02, 0.03, 0.4),
            "tokens_per_s": 97.5,
            "rate_source": "server",
            "input_tokens": 900,
            "output_tokens": chunks,
            "chunks": chunks,
            "thinking_chunks": 2,
            "context_window_tokens": 8192,
            "finish_reason": "stop",
            "tool_calls": [],
            "findings": findings or [],
            "bytes_in": 4100,
            "bytes_out": 900,
            "written_lag_s": 0.001,
            "proxy_overhead_s": 0.00004,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "cached_tokens": None,
            "withheld_tokens": 1,
            "doubts": ["one chunk more than tokens"],
            "error": None,
            "undecoded": None,
            "opened": opened,
            "series": self.series(chunks) if chunks else None,
        }
        return Record(**(values | changes))

    @staticmethod
    def series(n: int) -> Chunks:
        times = [250_000_000 + 10_000_000 * i for i in range(n)]
        arrival, lags = pack(times), pack_lags([40_000] * n)
        return Chunks(n, START_NS, RESOLUTION_NS, arrival, lags, [("thinking", 2), ("text", n - 2)], [])

    def turn(self, session: str, turn: int, **changes: Any) -> Record:
        """A record of a session that made one call, whose result the next one brings."""
        placed = self.placed(session, turn=turn, relation="next" if turn > 1 else "start")
        calls = [ToolCallSeen(f"call_{turn}", "bash", 1.25, 20, True, ["fits"])]
        return self.record(self.opened(placed=placed), tool_calls=calls, **changes)

    @staticmethod
    def result_of(record: Record, seconds: float = 2.5) -> Turnaround:
        asked = Nanoseconds(10**9)
        return Turnaround(record.id, 0, "call_1", "bash", asked, Nanoseconds(asked + int(seconds * 1e9)), False)


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "qm.db"


@pytest.fixture
def writing() -> Iterator[Callable[..., Writer]]:
    """Starts writers, and stops them at the end."""
    started: list[Writer] = []

    def start(path: Path | None, **settings: Any) -> Writer:
        writer = Writer(path, **{"linger_s": 0.0} | settings)
        writer.start()
        started.append(writer)
        return writer

    yield start
    for writer in started:
        writer.stop()
