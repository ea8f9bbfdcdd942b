from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qm_proxy.beside.residency import ResidencyWatch, read_residency
from qm_proxy.events import Nanoseconds, Residency

T = Nanoseconds(5)
LOADED = {
    "name": "qwen3:8b",
    "digest": "abc",
    "size": 100,
    "size_vram": 50,
    "context_length": 8192,
    "expires_at": "2026-11-24T10:00:00Z",
    "new_field": [1],
}


def _ps(*models: object) -> bytes:
    return json.dumps({"models": list(models)}).encode()


def test_reads_what_ollama_says() -> None:
    found = read_residency(_ps(LOADED), T)
    assert found is not None
    [model] = found.models
    assert (found.t_ns, model.name, model.digest) == (5, "qwen3:8b", "abc")
    assert (model.size, model.size_vram, model.context_window) == (100, 50, 8192)


def test_what_is_left_out_is_unknown_and_none_loaded_is_known() -> None:
    found = read_residency(_ps({"model": "m", "context_length": 0}), T)
    assert found is not None
    [model] = found.models
    assert (model.name, model.size, model.size_vram, model.context_window, model.expires_at) == ("m", None, None, None, None)
    assert read_residency(_ps(), T) == Residency(T, ())
    assert read_residency(b'{"models": null}', T) == Residency(T, ())


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error": "x"}', b'{"models": [1]}', b'{"models": 3}', b'"models"', b"\xff"]
)
def test_what_is_no_answer_is_unknown(body: bytes) -> None:
    assert read_residency(body, T) is None


async def test_the_window_of_a_name() -> None:
    watch = ResidencyWatch("http://x", None, 1.0, lambda found: None)
    assert watch.window_of("qwen3:8b") is None
    watch.latest = read_residency(_ps(LOADED, {"name": "llama:latest", "context_length": 4096}), T)
    assert watch.window_of("qwen3:8b") == 8192
    assert watch.window_of("llama") == watch.window_of("llama:latest") == 4096
    assert watch.window_of("qwen3") is None
    assert watch.window_of(None) is None


class Server:
    """Answers each request with the next of its replies; the last one for ever."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)
        self.requests: list[bytes] = []
        self.came = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.came.set()
            writer.write(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])
            await writer.drain()
        writer.close()

    async def asked(self, n: int) -> None:
        async with asyncio.timeout(60):
            while len(self.requests) < n:
                self.came.clear()
                await self.came.wait()


def _http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status.encode(), len(body), body)


@asynccontextmanager
async def running(watch: ResidencyWatch) -> AsyncIterator[None]:
    task = asyncio.ensure_future(watch.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _until(condition: Callable[[], bool], signal: asyncio.Event) -> None:
    async with asyncio.timeout(60):
        while not condition():
            signal.clear()
            await signal.wait()


async def test_it_asks_again_and_again_and_counts_what_is_no_answer() -> None:
    heard = asyncio.Event()
    seen: list[Residency] = []

    def see(found: Residency) -> None:
        seen.append(found)
        heard.set()

    replies = (_http(b'{"error":"x"}', "500 No"), b"SSH-2.0-x\r\n", _http(b"<html>"), _http(_ps(LOADED)))
    server = Server(*replies)
    async with await asyncio.start_server(server, "127.0.0.1", 0) as listener:
        watch = ResidencyWatch(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", None, 0.01, see)
        async with running(watch):
            await _until(lambda: len(seen) >= 2, heard)
    assert watch.failures == 3
    assert watch.latest is seen[-1]
    assert watch.window_of("qwen3:8b") == 8192
    assert b"User-Agent: qm-proxy" in server.requests[0]
    assert all(request.startswith(b"GET /api/ps ") for request in server.requests)


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    server = Server(_http(_ps(LOADED)))
    heard = asyncio.Event()
    async with await asyncio.start_unix_server(server, tmp_path / "o.sock"):
        watch = ResidencyWatch("unix:x", str(tmp_path / "o.sock"), 0.01, lambda found: heard.set())
        async with running(watch), asyncio.timeout(60):
            await heard.wait()
    assert watch.failures == 0


async def test_an_idle_proxy_leaves_an_idle_ollama_alone_until_there_is_traffic() -> None:
    server = Server(_http(_ps()))
    async with await asyncio.start_server(server, "127.0.0.1", 0) as listener:
        watch = ResidencyWatch(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", None, 0.01, lambda found: None)
        watch._last_traffic = time.monotonic() - 3600
        async with running(watch):
            await server.asked(1)
            await asyncio.sleep(0.5)  # many times its interval
            assert len(server.requests) == 1
            watch.wake()
            await server.asked(3)


async def test_in_a_hurry_it_does_not_wait_for_its_interval() -> None:
    server = Server(_http(_ps()))
    async with await asyncio.start_server(server, "127.0.0.1", 0) as listener:
        watch = ResidencyWatch(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", None, 3600.0, lambda found: None)
        async with running(watch):
            await server.asked(1)
            watch.hurry()
            await server.asked(2)
