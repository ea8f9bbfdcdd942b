"""A relay in this process: socket options, and the answer of last resort."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from qm_proxy.relay.addresses import Upstream, bind
from qm_proxy.relay.dial import Target
from qm_proxy.relay.serve import Relay, plain_reply
from qm_proxy.relay.splice import Splice


def test_both_sides_send_without_delay_and_vanished_clients_are_noticed(loop: asyncio.AbstractEventLoop) -> None:
    """TCP_NODELAY both ways; keep-alive on the client's side as Ollama's own listener has it (Go: 15 s, 15 s, 9)."""

    async def look() -> None:
        with socket.create_server(("127.0.0.1", 0)) as upstream:
            target = Target(Upstream(host="127.0.0.1", port=upstream.getsockname()[1]))
            await target.resolve()
            listeners = bind("127.0.0.1:0")
            relay = Relay(target, listeners)
            with socket.create_connection(listeners[0].getsockname()):
                async with asyncio.timeout(10):
                    while not relay.shared.connections:  # noqa: ASYNC110 - sockets tell nobody
                        await asyncio.sleep(0.001)
                (splice,) = relay.shared.connections.values()
                assert isinstance(splice, Splice)
                for end in (splice.client, splice.upstream):
                    assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
                client = splice.client.sock
                assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 9
                assert splice.upstream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
            relay.drain()
            relay.stop(0)
            await relay.closed.wait()
            await relay.finish()

    loop.run_until_complete(look())


def test_plain_reply() -> None:
    answer = plain_reply(b"GET / HTTP/1.1\r\n\r\n", "http://127.0.0.1:1", "connection refused")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert f"Content-Length: {len(body)}".encode() in head
    error = json.loads(body)["error"]
    assert "http://127.0.0.1:1" in error
    assert "connection refused" in error


@pytest.mark.parametrize("method", [b"HEAD", b"head"])
def test_plain_reply_to_head_has_no_body(method: bytes) -> None:
    assert plain_reply(method + b" / HTTP/1.1\r\n\r\n", "http://h:1", "x").endswith(b"\r\n\r\n")
