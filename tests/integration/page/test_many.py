"""The page with 100 000 exchanges stored: it reads a few pages, draws a few rows, and reaches any depth."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.routing import Route

from qm_proxy.console.app import Server, build, names_of_sockets
from qm_proxy.console.live import Live
from qm_proxy.console.page import page_routes
from qm_proxy.ids import new_id
from qm_proxy.measure.wall_clock import iso

from .conftest import Window, until

STORED = 100_000
_START_NS = 1_790_000_000_000_000_000
_MODELS = ["llama3.2:latest", "qwen3:8b", "gemma3:27b"]
_CLIENTS = ["claude-code", "opencode", "aider"]


def _exchange(n: int) -> dict[str, Any]:
    """The n-th oldest, made when asked for."""
    at = _START_NS + n * 1_000_000_000
    stamp = new_id(at)
    known = {
        "id": f"{stamp[:14]}7{n:03x}"[:18] + f"-8000-{n:012x}",
        "started_at": iso(at),
        "method": "POST",
        "route": "/api/chat",
        "dialect": "ollama",
        "operation": "chat",
        "model": _MODELS[n % 3],
        "streamed": True,
        "http_status": 200,
        "ending": "complete",
        "client": _CLIENTS[n // 3 % 3],
        "origin": "client",
        "ttft_s": 0.1 + n % 7 / 10,
        "prefill_s": 0.1,
        "decode_s": 1.5,
        "total_s": 2.0,
        "itl": {"n": 99, "mean_s": 0.016, "p50_s": 0.016, "p90_s": 0.02, "p99_s": 0.03, "max_s": 0.04},
        "tokens_per_s": 60.0 + n % 5,
        "input_tokens": 900,
        "output_tokens": 100,
        "chunks": 100,
        "tool_calls": [],
        "findings": [{"id": "f", "kind": "stall", "severity": "suspect"}] if n % 10 == 0 else [],
        "doubts": [],
    }
    names = (
        "response_model phase session_id session_source turn user_agent ttft_content_s queue_s load_s client_wait_s unexplained_s"
    )
    return dict.fromkeys(names.split()) | known


class Crowd:
    """An Archive of 100 000 exchanges that exist only while they are asked for. Counts what was asked."""

    def __init__(self) -> None:
        self.given = 0

    def exchanges(self, *, limit: int = 50, cursor: str | None = None, **_: Any) -> dict[str, Any]:
        newest = STORED if cursor is None else int(cursor[-12:], 16)
        items = [_exchange(n) for n in range(newest - 1, max(-1, newest - 1 - limit), -1)]
        self.given += len(items)
        return {"items": items, "next_cursor": items[-1]["id"] if newest > limit else None}

    def findings(self, **_: Any) -> dict[str, Any]:
        return {"items": [], "next_cursor": None}

    sessions = runs = findings

    def _none(self, *_: Any, **__: Any) -> None:
        return None

    exchange = chunks = session = run = _none

    def status(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def crowd() -> Iterator[tuple[Crowd, str]]:
    """The console's own application on a free port, in a thread, over the crowd."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    archive = Crowd()
    loop = asyncio.new_event_loop()
    up = threading.Event()
    servers: list[tuple[Server, asyncio.Task[None]]] = []

    async def serve() -> None:
        mounts = [Route("/api/v1/events", Live().endpoint), *page_routes(lambda: (url, url))]
        app = build(archive, lambda: {"models": []}, names=names_of_sockets([sock]), mounts=mounts)
        server = Server(app, [sock])
        task = asyncio.ensure_future(server.run_until_stopped())
        servers.append((server, task))
        await server.up.wait()
        up.set()

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(serve(), loop).result(20)
    assert up.wait(1)
    yield archive, url
    server, task = servers[0]
    asyncio.run_coroutine_threadsafe(server.stop(task), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_a_hundred_thousand_stay_far_away(crowd: tuple[Crowd, str], open_window: Callable[..., Window]) -> None:
    archive, url = crowd
    window = open_window(f"{url}/#/exchanges")
    page = window.page
    page.wait_for_selector(".vlist a")
    until(page, "document.querySelectorAll('.vlist a').length > 20")
    first = archive.given
    assert first <= 400, "the list alone reads few pages"
    for _ in range(12):
        before = archive.given
        page.evaluate("document.querySelector('.vscroll').scrollTop = 1e9")
        until(page, "document.querySelector('.vscroll').scrollTop + 2000 < document.querySelector('.vscroll').scrollHeight")
        assert archive.given > before
    rows = page.evaluate("document.querySelectorAll('.vlist li').length")
    depth = page.evaluate("Number(document.querySelector('.vlist li:last-child').dataset.at)")
    print(f"{rows} rows drawn at depth {depth} of {STORED}; long tasks {page.evaluate('window.qmLong')} ms")
    assert rows < 120
    assert depth > 1000
    assert window.complaints() == []


def test_the_league_table_counts_what_it_says(crowd: tuple[Crowd, str], open_window: Callable[..., Window]) -> None:
    _, url = crowd
    window = open_window(f"{url}/#/models?of=2000&by=client")
    page = window.page
    page.wait_for_selector(".league tbody tr")
    rows = page.locator(".league tbody tr")
    assert rows.count() == 9
    numbers = [int(text) for text in page.locator(".league tbody tr td:nth-child(3)").all_inner_texts()]
    assert sum(numbers) == 2000
    stalls = [float(text) for text in page.locator(".league tbody tr td:nth-child(9)").all_inner_texts()]
    assert all(0.5 < value < 1.5 for value in stalls), "one exchange in ten has one stall in 100 chunks"
    print(f"long tasks over 2000 exchanges: {page.evaluate('window.qmLong')} ms")
    assert window.complaints() == []
