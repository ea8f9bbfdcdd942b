"""Framing without sockets: whatever is written arrives, framed as Go would, however the client reads or the bytes are cut."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from probes.sim.connection import Connection
from probes.sim.http import BEFORE_CHUNKING, Request, Response
from tests.probes.sim.conftest import parse


class Wire(asyncio.Transport):
    """A transport that remembers; nothing is ever in its way."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert data
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    @property
    def bytes(self) -> bytes:
        return b"".join(self.sent)


class Paused:
    """A link whose client may stop reading."""

    def __init__(self) -> None:
        self.n = 1
        self.paused = False
        self.sent: list[bytes] = []

    def to_socket(self, data: bytes) -> None:
        assert not self.paused
        self.sent.append(data)

    def continue_100(self) -> None: ...

    def body_taken(self, request: Request) -> None: ...

    def drop(self, *, reset: bool) -> None: ...


def answer(method: str = "GET", *headers: tuple[str, str]) -> tuple[Response, Paused]:
    link = Paused()
    request = Request(link, method, "/", [("Host", "x"), *headers], 0)
    return Response(link, request), link


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["write", "stream", "flush", "pause", "resume"]), st.binary(max_size=3000)), max_size=25
)


@settings(max_examples=200)
@given(ACTIONS)
def test_whatever_is_written_arrives(actions: list[tuple[str, bytes]]) -> None:
    response, link = answer()
    expected = b""
    for action, data in actions:
        if action == "pause":
            link.paused = True
        elif action == "resume":
            link.paused = False
            response.resume()
        elif action == "flush":
            response.flush()
        else:
            (response.write if action == "write" else response.stream)(data)
            expected += data
    response.finish()
    link.paused = False
    response.resume()
    found = parse(b"".join(link.sent))
    assert found.complete
    assert found.body == expected
    assert all(found.chunks) or not expected
    flushed = any(a in ("flush", "stream") for a, _ in actions)
    if not flushed:
        assert found.chunked == (len(expected) > BEFORE_CHUNKING)


def test_a_stream_is_one_send_a_record_and_the_head_goes_with_the_first() -> None:
    response, link = answer()
    for n in range(3):
        response.stream(b"record %d\n" % n)
    response.finish()
    assert len(link.sent) == 4
    assert link.sent[0].endswith(b"\r\n\r\n9\r\nrecord 0\n\r\n")
    assert link.sent[1] == b"9\r\nrecord 1\n\r\n"
    assert link.sent[3] == b"0\r\n\r\n"


def test_written_is_told_when_it_is() -> None:
    response, link = answer()
    response.stream(b"a")
    assert response.flowing
    link.paused = True
    response.stream(b"b")
    told: list[int] = []
    response.when_written(told.append)
    assert not response.flowing
    assert not told
    link.paused = False
    response.resume()
    assert len(told) == 1
    assert response.flowing
    assert response.drained


def test_header_order_and_repeated_headers() -> None:
    response, link = answer()
    response.headers |= {"Vary": ["a", "b"], "Content-Type": "text/plain", "Allow": "GET"}
    response.write(b"x")
    response.finish()
    names = [k for k, _ in parse(b"".join(link.sent)).headers]
    assert names == ["Allow", "Content-Type", "Vary", "Vary", "Date", "Content-Length"]


REQUESTS = (
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nT: v\r\n\r\n",
    b"\r\nHEAD /d HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /e HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
)


async def echo(request: Request, response: Response) -> None:
    body = await request.body()
    response.write(f"{request.method} {request.target} ".encode() + body)


def play(pieces: list[bytes], handler: Any = echo) -> Wire:
    async def main() -> Wire:
        wire = Wire()
        connection = Connection(handler, set(), 1)
        connection.connection_made(wire)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(40):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        await asyncio.sleep(0)
        return wire

    return asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=5), st.lists(st.integers(1, 400), max_size=8))
def test_requests_cut_anywhere_are_the_same_requests(requests: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(requests)
    at = sorted({c for c in cuts if c < len(stream)})
    pieces = [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]

    whole = play([stream])
    cut = play(pieces)
    strip = [line for line in cut.bytes.split(b"\r\n") if not line.startswith(b"Date")]
    assert strip == [line for line in whole.bytes.split(b"\r\n") if not line.startswith(b"Date")]
    assert cut.bytes.count(b"HTTP/1.1 200 OK") == len(requests)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", REQUESTS[0], REQUESTS[2][:60]]))
def test_garbage_never_raises(garbage: bytes, before: bytes) -> None:
    wire = play([before + garbage, garbage])
    assert wire.bytes == b"" or wire.bytes.startswith(b"HTTP/1.1 ")


def test_a_handler_that_reads_nothing_leaves_the_connection_usable() -> None:
    async def deaf(request: Request, response: Response) -> None:
        response.write(b"no")

    wire = play([REQUESTS[1] + REQUESTS[2] + REQUESTS[0]], deaf)
    assert wire.bytes.count(b"HTTP/1.1 200 OK") == 3
    assert not wire.closed
