"""The last words arrive, whatever the client still does."""

from __future__ import annotations

import contextlib
import socket

from qm_proxy.relay.farewell import HEAD_BYTES, Farewell, Refusal
from qm_proxy.relay.pipe import Kind
from tests.qm_proxy.relay.conftest import Bench

WORDS = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
MANY_WORDS = bytes(range(256)) * 80_000  # more than the kernels hold


def all_of(sock: socket.socket, bench: Bench) -> bytes:
    got = bytearray()
    sock.setblocking(False)
    while True:
        bench.turn()
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            return bytes(got)
        got += data


def farewell(bench: Bench, words: bytes) -> socket.socket:
    theirs, ours = bench.pair()
    Farewell(bench.shared, 1, ours, words)
    return theirs


def test_words_and_fin(bench: Bench) -> None:
    theirs = farewell(bench, WORDS)
    assert all_of(theirs, bench) == WORDS
    assert bench.emptied == 0
    theirs.close()
    bench.turn(lambda: bench.emptied)
    assert [kind for kind, _, _ in bench.records()] == [Kind.CLIENT_EOF, Kind.CLOSED]
    assert len(bench.readiness) == 0


def test_many_words_to_a_slow_client(bench: Bench) -> None:
    theirs = farewell(bench, MANY_WORDS)
    assert all_of(theirs, bench) == MANY_WORDS


def test_many_words_to_a_client_that_half_closed_before(bench: Bench) -> None:
    theirs, ours = bench.pair()
    theirs.shutdown(socket.SHUT_WR)
    Farewell(bench.shared, 1, ours, MANY_WORDS)
    bench.turn()
    assert all_of(theirs, bench) == MANY_WORDS
    bench.turn(lambda: bench.emptied)
    assert len(bench.readiness) == 0


def test_a_client_that_goes_on_sending_does_not_lose_them(bench: Bench) -> None:
    theirs, ours = bench.pair()
    theirs.setblocking(False)
    theirs.send(b"x" * 100_000)
    Farewell(bench.shared, 1, ours, WORDS)
    for _ in range(50):
        try:
            theirs.send(b"x" * 100_000)
        except BlockingIOError:
            bench.turn()
    assert all_of(theirs, bench) == WORDS


def test_a_client_that_is_gone(bench: Bench) -> None:
    theirs, ours = bench.pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    Farewell(bench.shared, 1, ours, WORDS)
    bench.turn(lambda: bench.emptied)
    assert [kind for kind, _, _ in bench.records()] == [Kind.CLIENT_RESET, Kind.CLOSED]


def test_the_relay_stops_meanwhile(bench: Bench) -> None:
    farewell(bench, MANY_WORDS)
    bench.shared.connections[1].end(gently=False)
    assert bench.emptied == 1
    assert [kind for kind, _, _ in bench.records()] == [Kind.SHUTDOWN, Kind.CLOSED]


def test_a_failing_farewell_is_ended(bench: Bench) -> None:
    theirs, ours = bench.pair()
    Farewell(bench.shared, 1, ours, WORDS).failed()
    assert bench.emptied == 1
    assert theirs.recv(1000) == WORDS


class Asked:
    """What the refusal asks of the relay."""

    def __init__(self) -> None:
        self.heads: list[tuple[bytes, str]] = []
        self.retries = 0

    def answer(self, head: bytes, reason: str) -> bytes:
        self.heads.append((head, reason))
        return WORDS

    def retry(self) -> None:
        self.retries += 1


def refusal(bench: Bench, asked: Asked) -> tuple[socket.socket, Refusal]:
    theirs, ours = bench.pair()
    return theirs, Refusal(bench.shared, 1, ours, "connection refused", asked.answer, asked.retry)


def test_the_head_is_what_had_come(bench: Bench) -> None:
    asked = Asked()
    theirs, _ = refusal(bench, asked)
    theirs.send(b"GET / HTTP/1.1\r\n")
    bench.turn()
    theirs.send(b"\r\nand a body")
    assert all_of(theirs, bench) == WORDS
    assert asked.heads == [(b"GET / HTTP/1.1\r\n\r\nand a body", "connection refused")]
    theirs.close()
    bench.turn(lambda: bench.emptied)
    kinds = [kind for kind, _, _ in bench.records() if kind is not Kind.CLIENT_DATA]
    assert kinds == [Kind.REFUSED, Kind.UPSTREAM_DATA, Kind.CLIENT_EOF, Kind.CLOSED]


def test_a_head_is_read_within_bounds(bench: Bench) -> None:
    asked = Asked()
    theirs, _ = refusal(bench, asked)
    theirs.setblocking(False)
    while not asked.heads:
        with contextlib.suppress(BlockingIOError):
            theirs.send(b"x" * 10_000)
        bench.turn()
    assert HEAD_BYTES <= len(asked.heads[0][0]) <= 2 * HEAD_BYTES


def test_a_late_request_is_worth_another_try(bench: Bench) -> None:
    asked = Asked()
    theirs, made = refusal(bench, asked)
    made._since -= 2
    theirs.send(b"GET / HTTP/1.1\r\n\r\n")
    bench.turn(lambda: asked.retries)
    bench.turn()
    assert (asked.retries, asked.heads) == (1, [])
    made.ready(1)  # the socket is the relay's again


def test_the_relay_stops_while_a_head_is_read(bench: Bench) -> None:
    theirs, made = refusal(bench, Asked())
    made.failed()
    assert bench.emptied == 1
    assert theirs.recv(1) == b""
