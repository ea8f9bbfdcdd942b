"""HTTP as Go's net/http speaks it: keep-alive, pipelining, bodies of every framing, refusals, HTTP/1.0, HEAD, Expect."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from probes.sim.server import SimulatedOllama
from tests.probes.sim.conftest import Running, ask, parse, post, read_answer

CHAT = b'{"model":"steady","messages":[{"role":"user","content":"hi"}],"options":{"num_predict":3}}'


async def exchange(sim: SimulatedOllama, *parts: bytes) -> bytes:
    """Send the parts, each as a packet of its own, and read till the server closes."""
    reader, writer = await asyncio.open_connection(sim.host, sim.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
            writer.write(get % b"/nope" + post("/api/chat", CHAT) + post("/api/chat", b"{") + get % b"/api/version")
            answers = [parse(await read_answer(reader)) for _ in range(4)]
            assert [a.status for a in answers] == [404, 200, 400, 200]
            assert b'"eval_count":3' in answers[1].body
            assert {r.connection for r in sim.truth.requests} == {1}
            writer.close()

    asyncio.run(main())


def test_a_request_cut_anywhere_is_the_same_request(running: Running) -> None:
    request = post("/api/chat", CHAT.replace(b'"options":', b'"stream":false,"options":'))

    async def main() -> None:
        async with running("steady") as sim:
            whole = await ask(sim, request)
            for at in (1, 20, len(request) - len(CHAT), len(request) - 1):
                reader, writer = await asyncio.open_connection(sim.host, sim.port)
                writer.write(request[:at])
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(request[at:])
                assert parse(await read_answer(reader)).status == whole.status == 200
                writer.close()

    asyncio.run(main())


def test_chunked_bodies_and_trailers(running: Running) -> None:
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"5\r\n" + CHAT[:5] + b"\r\n%x;ext=1\r\n" % (len(CHAT) - 5) + CHAT[5:] + b"\r\n0\r\nTrailer: x\r\n\r\n"

    async def main() -> None:
        async with running("steady") as sim:
            for cut in (len(head) + 1, len(head) + 4, len(chunked) - 3):
                reader, writer = await asyncio.open_connection(sim.host, sim.port)
                writer.write(chunked[:cut])
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(chunked[cut:] + b"GET / HTTP/1.1\r\nHost: x.local\r\n\r\n")
                assert b'"done":true' in parse(await read_answer(reader)).body
                assert parse(await read_answer(reader)).body == b"Ollama is running"
                writer.close()

    asyncio.run(main())


def test_expect_100_is_answered_when_the_body_is_read(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            request = post("/api/chat", CHAT, "Expect: 100-continue")
            writer.write(request[: -len(CHAT)])
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(CHAT)
            assert parse(await read_answer(reader)).status == 200
            writer.close()
            refused = parse(await exchange(sim, post("/nope", CHAT, "Expect: 100-continue")[: -len(CHAT)]))
            assert (refused.status, refused.header("Connection")) == (404, "close")
            assert parse(await exchange(sim, post("/api/chat", CHAT, "Expect: miracles"))).status == 417

    asyncio.run(main())


def test_http10_streams_till_the_close(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            request = post("/api/chat", CHAT).replace(b"HTTP/1.1", b"HTTP/1.0")
            answer = parse(await exchange(sim, request))
            assert answer.status_line == "HTTP/1.0 200 OK"
            assert not answer.chunked
            assert answer.body.count(b"\n") == 4
            assert answer.body.endswith(b"}\n")

    asyncio.run(main())


def test_connection_close_is_honoured_and_said(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            raw = await exchange(sim, b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = parse(raw)
            assert [k for k, _ in answer.headers] == ["Content-Type", "Date", "Content-Length", "Connection"]

    asyncio.run(main())


def test_head_has_the_length_and_no_body(running: Running) -> None:
    async def main() -> None:
        async with running() as sim:  # all personas: /api/tags is long
            for path, length in (("/", "17"), ("/api/version", "24"), ("/api/tags", None)):
                raw = await exchange(sim, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                head, _, body = raw.partition(b"\r\n\r\n")
                assert body == b""
                assert (f"Content-Length: {length}".encode() in head) == (length is not None)
                assert b"Transfer-Encoding" not in head
            refused = await exchange(sim, b"HEAD /api/ps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20) + b"y" * 8192, 431),
    ],
)
def test_what_is_no_request_is_refused_and_closed(request_bytes: bytes, status: int, running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            with contextlib.suppress(ConnectionError):
                assert parse(await exchange(sim, request_bytes)).status == status
            assert (await ask(sim, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200  # it goes on

    asyncio.run(main())


def test_absolute_form_and_empty_lines_before_a_request(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            answer = await ask(sim, b"\r\n\r\nGET http://localhost/api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer.status == 200

    asyncio.run(main())


def test_an_unread_body_does_not_break_the_connection(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post("/nope", b"x" * 100_000) + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert parse(await read_answer(reader)).status == 404
            assert parse(await read_answer(reader)).status == 200
            writer.close()

    asyncio.run(main())


def test_a_large_body_is_taken_whole(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            body = b'{"model":"steady","prompt":"%b","stream":false,"raw":true,"options":{"num_predict":1}}' % (
                b" word" * 1_000_000
            )
            answer = await ask(sim, post("/api/generate", body))
            assert answer.status == 200
            assert sim.truth[0].asked_tokens == 1_000_000

    asyncio.run(main())


def test_stopping_cuts_streams_and_gives_everything_back(running: Running) -> None:
    async def main() -> None:
        before = set(asyncio.all_tasks())
        async with running("steady", speed=1.0) as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post("/api/chat", CHAT.replace(b'"num_predict":3', b'"num_predict":3000')))
            await sim.truth.when(lambda: len(sim.truth) > 0 and len(sim.truth[0].written_ns) > 0)
        with contextlib.suppress(ConnectionError):
            raw = await reader.read()
            assert not raw.endswith(b"0\r\n\r\n")
        writer.close()
        assert set(asyncio.all_tasks()) == before
        assert sim.truth[0].ending == "client_left"

    asyncio.run(main())
