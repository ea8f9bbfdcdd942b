"""The guard's cut on real sockets: the client sees a complete answer, the upstream a reset, and nothing happens unordered."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from qm_proxy.relay.pipe import Kind, order
from tests.integration.transparency.cases import CASES, OK, RECORD, STREAM_HEAD, chunk, get, post
from tests.integration.transparency.rig import RelayProcess, Wire, as_upstream, connect, run_case

MakeRelay = Callable[..., RelayProcess]
END = b'{"done":true}\n'


@pytest.fixture
def relay(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> RelayProcess:
    return make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name, guard=True)


@pytest.fixture
def wire(relay: RelayProcess, upstream_listener: socket.socket) -> Wire:
    return Wire(connect(relay.address), upstream_listener)


def ask(wire: Wire, request: bytes = post()) -> None:
    wire.client.send(request)
    assert wire.upstream.read(len(request)) == request


def say(wire: Wire, data: bytes) -> None:
    wire.upstream.send(data)
    assert wire.client.read(len(data)) == data


def refusals(relay: RelayProcess) -> int:
    return int(relay.stats()["cuts_refused"])


def is_cut(relay: RelayProcess, wire: Wire) -> None:
    assert wire.client.rest() == chunk(END) + b"0\r\n\r\n"
    assert wire.client.end == "eof"
    assert wire.upstream.ended() == "reset"
    wire.close()
    records = relay.copy.wait_for(Kind.CLOSED, 1)
    assert [record.data for record in records if record.kind is Kind.CUT] == [END]
    assert relay.settled()["cuts"] == 1


def test_at_a_boundary_at_once(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD))
    relay.pipe.sendall(order(1, 0, END))
    is_cut(relay, wire)


def test_in_mid_chunk_at_its_end(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD)[:20])
    relay.pipe.sendall(order(1, 0, END))
    assert wire.client.is_quiet()
    rest = chunk(RECORD)[20:]
    wire.upstream.send(rest + chunk(RECORD) * 3)
    assert wire.client.read(len(rest)) == rest
    is_cut(relay, wire)


def test_before_the_answer_has_begun_at_its_first_boundary(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    relay.pipe.sendall(order(1, 0, END))
    assert wire.client.is_quiet()
    wire.upstream.send(STREAM_HEAD + chunk(RECORD))
    assert wire.client.read(len(STREAM_HEAD)) == STREAM_HEAD
    is_cut(relay, wire)


def test_the_second_exchange_of_a_kept_connection(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD) + b"0\r\n\r\n")
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD))
    relay.pipe.sendall(order(1, 1, END))
    is_cut(relay, wire)


def test_an_order_in_pieces_and_two_at_once(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD))
    both = order(77, 0, END) + order(1, 0, END)
    for n in range(len(both)):
        relay.pipe.sendall(both[n : n + 1])
    is_cut(relay, wire)


def test_with_a_slow_client_behind_what_it_still_gets(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD)
    sent = 0
    data = chunk(b"z" * 100_000)
    wire.upstream.sock.settimeout(0.2)
    try:
        while True:
            sent += wire.upstream.sock.send(data[sent % len(data) :])
    except TimeoutError:
        relay.pipe.sendall(order(1, 0, END))
    got = wire.client.rest()
    assert wire.client.end == "eof"
    assert wire.client.n_bytes > 1_000_000
    assert (wire.client.n_bytes - len(STREAM_HEAD) - len(chunk(END) + b"0\r\n\r\n")) % len(data) == 0
    assert got[: len(data)] == data
    wire.close()
    assert relay.settled()["cuts"] == 1


def test_an_exchange_that_is_over_is_left_alone(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD) + b"0\r\n\r\n")
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD))
    relay.pipe.sendall(order(1, 0, END))
    while refusals(relay) == 0:
        pass
    say(wire, chunk(RECORD) + b"0\r\n\r\n")
    wire.close()


UNFIT = {
    "a length": OK[:-1],
    "close-delimited": b"HTTP/1.1 200 OK\r\n\r\nsome",
    "http/1.0": b"HTTP/1.0 200 OK\r\n\r\nsome",
    "garbage": b"garbage\r\n\r\n",
    "a bad chunk": STREAM_HEAD + b"zz\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_ended_cleanly_is_left_alone(relay: RelayProcess, wire: Wire, name: str) -> None:
    ask(wire)
    say(wire, UNFIT[name])
    relay.pipe.sendall(order(1, 0, END))
    while refusals(relay) == 0:
        pass
    say(wire, b"and on it goes")
    wire.close()
    assert relay.settled()["cuts"] == 0


def test_the_last_chunk_is_not_overtaken(relay: RelayProcess, wire: Wire) -> None:
    """Ordered in mid-chunk, but the rest of the answer comes with its end: it is complete as it is."""
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD)[:20])
    relay.pipe.sendall(order(1, 0, END))
    assert wire.client.is_quiet()
    say(wire, chunk(RECORD)[20:] + b"0\r\n\r\n")
    assert refusals(relay) == 1
    ask(wire)
    wire.close()


def test_garbage_on_the_way_back_is_passed_over(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    relay.pipe.sendall(b"garbage" * 100)
    say(wire, STREAM_HEAD + chunk(RECORD))
    assert relay.stats()["internal_failures"] == 0
    relay.pipe.sendall(order(1, 0, END))
    is_cut(relay, wire)


def test_a_pipe_that_is_gone(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    relay.pipe.shutdown(socket.SHUT_RDWR)
    say(wire, STREAM_HEAD + chunk(RECORD))
    watched = relay.stats()["sockets_watched"]
    assert watched == 4  # listener, control line, client, upstream
    say(wire, chunk(RECORD) + b"0\r\n\r\n")
    wire.close()


def test_two_orders_for_one_exchange(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD)[:20])
    relay.pipe.sendall(order(1, 0, END) + order(1, 0, b"again"))
    while refusals(relay) == 0:
        pass
    rest = chunk(RECORD)[20:]
    wire.upstream.send(rest)
    assert wire.client.read(len(rest)) == rest
    is_cut(relay, wire)


def test_a_client_that_is_gone(relay: RelayProcess, wire: Wire) -> None:
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD))
    wire.client.reset()
    assert wire.upstream.ended() == "reset"
    relay.settled()
    relay.pipe.sendall(order(1, 0, END))
    while refusals(relay) == 0:
        pass
    wire.close()


def test_without_the_guard_nothing_is_read_back(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> None:
    relay = make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name, guard=False)
    wire = Wire(connect(relay.address), upstream_listener)
    ask(wire)
    say(wire, STREAM_HEAD + chunk(RECORD))
    relay.pipe.sendall(order(1, 0, END))
    assert wire.client.is_quiet()
    say(wire, chunk(RECORD))
    assert "cuts" not in relay.stats()
    wire.close()


@pytest.mark.parametrize("name", [name for name in CASES if "100 MB" not in name])
def test_unordered_all_is_as_direct(guarded_relay: tuple[RelayProcess, socket.socket], name: str) -> None:
    """The whole differential suite once more, with the guard on and no orders."""
    relay, listener = guarded_relay
    direct = run_case(CASES[name], Wire(connect(listener.getsockname()), listener))
    through = run_case(CASES[name], Wire(connect(relay.address), listener))
    assert through == direct


def test_a_get_between(relay: RelayProcess, wire: Wire) -> None:
    """Requests without a body, a HEAD and a 100 do not shift the count."""
    ask(wire, get(b"/"))
    say(wire, OK)
    ask(wire, b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    say(wire, b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")
    ask(wire)
    say(wire, b"HTTP/1.1 100 Continue\r\n\r\n" + STREAM_HEAD + chunk(RECORD))
    relay.pipe.sendall(order(1, 2, END))
    is_cut(relay, wire)
