"""The splice's parts in this process: what its rules say, one by one. Whole behaviour: integration/transparency."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest

from qm_proxy.relay.pipe import Kind
from qm_proxy.relay.splice import COPIED_REQUEST_BYTES, READ_BYTES, Splice, abort, close, undelivered_bytes
from tests.qm_proxy.relay.conftest import Bench


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def joined(bench: Bench) -> tuple[socket.socket, socket.socket, Splice]:
    """(client, upstream, the splice between them)."""
    client, ours = bench.pair()
    upstream, our_upstream = bench.pair()
    return client, upstream, Splice(bench.shared, 1, ours, our_upstream)


def fill(sock: socket.socket, bench: Bench) -> int:
    """Send until neither kernels nor splice take any more."""
    sock.setblocking(False)
    sent, full = 0, 0
    while full < 5:
        try:
            sent += sock.send(b"f" * 1_000_000)
            full = 0
        except BlockingIOError:
            full += 1
        bench.turn()
    sock.settimeout(10)
    return sent


def drain(sock: socket.socket, bench: Bench, n: int) -> None:
    sock.setblocking(False)
    while n:
        bench.turn()
        try:
            n -= len(sock.recv(n))
        except BlockingIOError:
            continue
    sock.settimeout(10)


def test_bytes_go_before_they_are_copied(bench: Bench, joined: tuple[socket.socket, socket.socket, Splice]) -> None:
    client, upstream, _ = joined
    copied = []
    bench.tap.add = lambda *record: copied.append(upstream.recv(100))  # type: ignore[method-assign]
    client.send(b"hello")
    bench.turn(lambda: copied)
    assert copied == [b"hello"]  # it was with the upstream when the tap was asked


def test_a_backlog_is_at_most_one_read(bench: Bench, joined: tuple[socket.socket, socket.socket, Splice]) -> None:
    client, upstream, splice = joined
    sent = fill(upstream, bench)
    assert splice.client.backlog is not None
    assert 0 < len(splice.client.backlog) <= READ_BYTES
    assert not splice.upstream.reading
    assert splice.client.reading
    drain(client, bench, sent)
    bench.turn(lambda: splice.upstream.reading)
    assert splice.client.backlog is None


def test_a_backlog_that_is_taken_in_pieces(bench: Bench) -> None:
    client, ours = bench.pair()
    upstream, our_upstream = bench.pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)
    splice = Splice(bench.shared, 1, ours, our_upstream)
    data = bytes(n % 251 for n in range(READ_BYTES))
    upstream.sendall(data)
    upstream.shutdown(socket.SHUT_WR)
    lengths, got = set(), bytearray()
    client.setblocking(False)
    while not splice.client.fin_sent or len(got) < len(data):
        bench.turn()
        lengths.add(len(splice.client.backlog or b""))
        with contextlib.suppress(BlockingIOError):
            got += client.recv(1000)
    assert got == data
    assert len(lengths) > 3


def test_a_request_beyond_the_bound_is_not_copied(bench: Bench, joined: tuple[socket.socket, socket.socket, Splice]) -> None:
    client, upstream, splice = joined
    splice.client.copied = COPIED_REQUEST_BYTES - 3
    for data in (b"abc", b"d"):
        client.send(data)
        bench.turn()
        assert upstream.recv(10) == data
    upstream.send(b"answer")
    bench.turn()
    client.recv(10)
    client.send(b"next")
    bench.turn()
    assert [(kind, data) for kind, _, data in bench.records()] == [
        (Kind.CONNECTED, b""),
        (Kind.CLIENT_DATA, b"abc"),
        (Kind.CLIENT_SKIPPED, (1).to_bytes(8, "little")),
        (Kind.UPSTREAM_DATA, b"answer"),
        (Kind.CLIENT_DATA, b"next"),
    ]


def test_ended_once_whatever_comes(bench: Bench, joined: tuple[socket.socket, socket.socket, Splice]) -> None:
    client, upstream, splice = joined
    reset(client)
    reset(upstream)
    bench.turn(lambda: bench.emptied)
    splice.end(gently=True)
    splice.upstream.failed()
    splice.cut()
    bench.turn()
    kinds = [kind for kind, _, _ in bench.records()]
    assert kinds.count(Kind.CLOSED) == 1
    assert kinds[-1] is Kind.CLOSED
    assert bench.emptied == 1
    assert len(bench.readiness) == 0


def test_a_mistake_in_one_end_resets_both(bench: Bench, joined: tuple[socket.socket, socket.socket, Splice]) -> None:
    client, upstream, splice = joined
    splice.client.failed()
    for sock in (client, upstream):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_reset_waits_for_what_is_not_delivered(bench: Bench, joined: tuple[socket.socket, socket.socket, Splice]) -> None:
    client, upstream, splice = joined
    fill(upstream, bench)
    reset(upstream)
    bench.turn()
    assert not splice.ended
    got = 0
    client.setblocking(False)
    how: OSError | None = None
    while how is None:
        bench.turn()
        try:
            got += len(client.recv(1 << 20))
        except BlockingIOError:
            continue
        except OSError as failure:
            how = failure
    assert isinstance(how, ConnectionResetError)
    assert got == splice.upstream.seen > 0
    assert splice.ended


def test_a_client_reset_while_its_reset_was_still_to_be_read(
    bench: Bench, joined: tuple[socket.socket, socket.socket, Splice]
) -> None:
    """Found by random steps: known to be reset by a write, it must not be left unread when upstream is reset too."""
    _, _, splice = joined
    splice.client.broke()
    assert not splice.ended
    splice.upstream.reading = False
    splice.upstream.broke()
    assert splice.ended


def test_undelivered_bytes(bench: Bench) -> None:
    theirs, ours = bench.pair()
    assert undelivered_bytes(ours) == 0
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += ours.send(b"x" * 100_000)
    assert 0 < undelivered_bytes(ours) <= sent
    left, right = socket.socketpair()
    left.send(b"x")
    assert undelivered_bytes(left) == 0
    left.close()
    right.close()
    assert undelivered_bytes(left) == 0
    theirs.close()


def test_close_and_abort_twice(bench: Bench) -> None:
    for end in (close, abort):
        theirs, ours = bench.pair()
        end(bench.shared, ours)
        end(bench.shared, ours)
        if end is close:
            assert theirs.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                theirs.recv(1)
    left, right = socket.socketpair()
    abort(bench.shared, left)
    assert right.recv(1) == b""
    right.close()
