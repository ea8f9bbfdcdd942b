"""A running simulated Ollama, and the plainest client there is: bytes out, bytes in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import pytest

from probes.sim.personas import Persona
from probes.sim.server import SimulatedOllama

Running = Callable[..., AbstractAsyncContextManager[SimulatedOllama]]


class Answer(NamedTuple):
    """One HTTP answer as it stood on the wire."""

    status_line: str
    headers: list[tuple[str, str]]
    chunks: list[bytes]  # one for a body with Content-Length
    chunked: bool
    complete: bool  # the framing was ended, not cut

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k == name), None)


def parse(raw: bytes) -> Answer:
    """Read one answer; strict about everything a client could see."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    if ("Transfer-Encoding", "chunked") not in headers:
        length = next((int(v) for k, v in headers if k == "Content-Length"), len(rest))
        return Answer(status_line, headers, [rest] if rest else [], False, len(rest) == length)
    chunks: list[bytes] = []
    while rest:
        size_text, _, rest = rest.partition(b"\r\n")
        size = int(size_text, 16)
        assert size_text == b"%x" % size, f"{size_text!r} is not how Go writes a chunk size"
        if size == 0:
            return Answer(status_line, headers, chunks, True, rest == b"\r\n")
        chunks.append(rest[:size])
        rest = rest[size + 2 :]
    return Answer(status_line, headers, chunks, True, False)


def post(path: str, body: bytes, *extra: str) -> bytes:
    """A request as curl sends it."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1:11434", "User-Agent: curl/7.88.1", "Accept: */*"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", *extra]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Bytes of one answer, to the end of its framing or of the connection."""
    raw = b""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
        raw = await reader.readuntil(b"\r\n\r\n")
        lower = raw.lower()
        if b"transfer-encoding: chunked" in lower:
            while True:
                line = await reader.readuntil(b"\r\n")
                raw += line
                raw += await reader.readexactly(int(line, 16) + 2)
                if line == b"0\r\n":
                    break
        elif b"content-length: " in lower:
            raw += await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        elif b" 204 " not in raw.split(b"\r\n")[0]:
            raw += await reader.read()
    return raw


async def ask(sim: SimulatedOllama, request: bytes) -> Answer:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection(sim.host, sim.port)
    try:
        writer.write(request)
        return parse(await read_answer(reader))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
def running() -> Running:
    """`async with running(persona, …, speed=50) as sim:`"""

    @contextlib.asynccontextmanager
    async def start(*personas: Persona | str, speed: float = 50.0, **options: Any) -> AsyncIterator[SimulatedOllama]:
        async with SimulatedOllama(personas or None, speed=speed, **options) as sim:
            yield sim

    return start
