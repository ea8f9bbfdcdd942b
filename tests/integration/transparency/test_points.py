"""The checklist of ollama-wire section 7, where it concerns the relay: one test for each point, named after it.

Points 22 to 31, 33, 38 and 39 concern what the observer makes of the copy; their tests are with the decoders. Of 12, 14 and 23
the relay's half is here.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qm_proxy.relay.addresses import Upstream
from qm_proxy.relay.pipe import LAG_UNKNOWN, Kind
from qm_proxy.relay.splice import COPIED_REQUEST_BYTES
from tests.integration.transparency.cases import (
    ANSWER,
    ANSWERS,
    BODIES,
    HEADS,
    OK,
    RECORD,
    STREAM_HEAD,
    TARGETS,
    chunk,
    get,
    post,
)
from tests.integration.transparency.conftest import Lab
from tests.integration.transparency.rig import (
    RelayProcess,
    Side,
    Wire,
    as_upstream,
    connect,
    in_background,
    listen,
    pattern,
)

MakeRelay = Callable[..., RelayProcess]
GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "wire").rglob("*.bin"))
MiB = 1 << 20


def passes(sender: Side, receiver: Side, data: bytes) -> None:
    """All of `data`, unaltered."""
    with in_background(lambda: sender.send(data)):
        assert receiver.read(len(data)) == data


def answered(wire: Wire, request: bytes = post(), answer: bytes = OK) -> None:
    passes(wire.client, wire.upstream, request)
    passes(wire.upstream, wire.client, answer)


def leave(wire: Wire) -> None:
    wire.client.close()
    assert wire.upstream.ended() == "eof"
    wire.close()


# --- bytes and protocol ------------------------------------------------------------------------------------------------------


def test_point_01_bodies_are_identical(lab: Lab) -> None:
    """Every recorded body of every dialect, streamed or not, on one kept connection."""
    assert len(GOLDEN) > 100
    wire = lab.through()
    for path in GOLDEN:
        body = path.read_bytes()
        up, down = (body, OK) if path.name.endswith(".request.bin") else (post(), body)
        answered(wire, up, down)
    leave(wire)


def test_point_02_status_and_headers_are_identical(lab: Lab) -> None:
    wire = lab.through()
    for answer in ANSWERS.values():
        answered(wire, post(), answer)
    leave(wire)


def test_point_03_target_is_forwarded_raw(lab: Lab) -> None:
    wire = lab.through()
    for target in TARGETS.values():
        answered(wire, get(target))
    redirect = b"HTTP/1.1 301 Moved Permanently\r\nLocation: /api/tags\r\nContent-Length: 0\r\n\r\n"
    answered(wire, get(b"/api/tags/"), redirect)
    assert wire.upstream.is_quiet()  # the redirect was the client's to follow
    leave(wire)


def test_point_04_request_bodies_are_identical(lab: Lab) -> None:
    wire = lab.through()
    for name, request in BODIES.items():
        if name != "100 MB":
            answered(wire, request)
    leave(wire)


def test_point_05_nothing_is_added_to_a_request(lab: Lab) -> None:
    wire = lab.through()
    for request in HEADS.values():
        answered(wire, request)
    assert wire.upstream.is_quiet()
    leave(wire)


def test_point_06_methods_and_bodiless_answers(lab: Lab) -> None:
    wire = lab.through()
    answered(wire, b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")
    answered(wire, BODIES["delete with body"], ANSWERS["204"])
    answered(wire, HEADS["options"], ANSWERS["204"])
    answered(wire, get(b"/nowhere"), ANSWERS["404"])
    answered(wire, get(b"/api/chat"), ANSWERS["405"])
    leave(wire)


def test_point_07_framing_is_kept(lab: Lab) -> None:
    wire = lab.through()
    answered(wire, post(), OK)
    answered(wire, post(), ANSWERS["stream"])
    answered(wire, b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nto the end")
    wire.upstream.fin()
    assert wire.client.ended() == "eof"
    leave(wire)


# --- streaming ---------------------------------------------------------------------------------------------------------------


def test_point_08_bytes_do_not_wait_for_the_observer(
    make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str
) -> None:
    """Nobody reads the pipe; what passes is garbage to every parser."""
    relay = make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name, read_pipe=False)
    wire = Wire(connect(relay.address), upstream_listener)
    passes(wire.client, wire.upstream, pattern(40 * MiB, 8))
    passes(wire.upstream, wire.client, pattern(40 * MiB, 9))
    leave(wire)
    stats = relay.settled()
    assert stats["skipped_bytes"] + stats["dropped_bytes"] > 20 * MiB


def test_point_09_no_record_waits_for_another(lab: Lab) -> None:
    """Each record is with the client before the next is sent, and is a read of its own in the copy."""
    wire = lab.through()
    passes(wire.client, wire.upstream, post())
    sent = [STREAM_HEAD + chunk(RECORD), *(chunk(RECORD + b" " * n) for n in range(50)), b"0\r\n\r\n"]
    for data in sent:
        passes(wire.upstream, wire.client, data)
    leave(wire)
    records = lab.relay.copy.wait_for(Kind.CLOSED, lab.relay.connections)
    assert [record.data for record in records if record.kind is Kind.UPSTREAM_DATA] == sent


@pytest.mark.parametrize("silence_s", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_point_10_silence_has_no_limit(lab: Lab, silence_s: int) -> None:
    wire = lab.through()
    passes(wire.client, wire.upstream, post())
    assert wire.client.is_quiet(silence_s)
    passes(wire.upstream, wire.client, STREAM_HEAD + chunk(RECORD))
    assert wire.client.is_quiet(silence_s / 2)
    passes(wire.upstream, wire.client, b"0\r\n\r\n")
    leave(wire)


def test_point_11_any_cut_of_the_bytes(lab: Lab) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=5000)), max_size=20))
    def any_cut(pieces: list[tuple[bool, bytes]]) -> None:
        for upward, data in pieces:
            sender, receiver = (wire.client, wire.upstream) if upward else (wire.upstream, wire.client)
            sender.send(data)
            if len(data) % 2:  # else it joins the next one
                receiver.awaits(1)
        for upward in (True, False):
            receiver = wire.upstream if upward else wire.client
            expected = b"".join(data for way, data in pieces if way is upward)
            assert receiver.read(len(expected)) == expected

    wire = lab.through()
    any_cut()
    leave(wire)


def test_point_12_too_long_a_request_turns_the_copy_off_not_the_relay(lab: Lab) -> None:
    wire = lab.through()
    number = lab.relay.connections
    request = post(b"/api/blobs/x", pattern(COPIED_REQUEST_BYTES + 8 * MiB))
    answered(wire, request, OK)
    answered(wire, post(), OK)  # after an answer the next request is copied again
    leave(wire)
    records = lab.relay.copy.wait_for(Kind.CLOSED, number)
    up = [record for record in records if record.kind in (Kind.CLIENT_DATA, Kind.CLIENT_SKIPPED)]
    sizes = [len(r.data) if r.kind is Kind.CLIENT_DATA else int.from_bytes(r.data, "little") for r in up]
    assert sum(sizes) == len(request) + len(post())
    assert [record.offset for record in up] == [sum(sizes[:n]) for n in range(len(sizes))]
    skipped = sum(size for record, size in zip(up, sizes, strict=True) if record.kind is Kind.CLIENT_SKIPPED)
    assert 7 * MiB < skipped
    assert up[-1].data.endswith(post()[-20:])
    assert all(request[r.offset : r.offset + len(r.data)] == r.data for r in up[:-1] if r.kind is Kind.CLIENT_DATA)


def test_point_13_a_slow_client_loses_nothing_and_memory_is_bounded(lab: Lab) -> None:
    data = pattern(48 * MiB, 13)
    wire = lab.through()
    passes(wire.client, wire.upstream, post())
    relay = lab.relay
    relay.stats()
    before = relay.rss_bytes()
    with in_background(lambda: wire.upstream.send(data)):
        wire.client.awaits(1)
        relay.copy.wait_for(Kind.CLIENT_SLOW, relay.connections)
        grown = relay.rss_bytes() - before
        assert wire.client.read(len(data)) == data
    leave(wire)
    assert grown < 8 * MiB
    records = relay.copy.wait_for(Kind.CLOSED, relay.connections)
    kinds = [record.kind for record in records if record.kind in (Kind.CLIENT_SLOW, Kind.CLIENT_READY)]
    assert kinds == [Kind.CLIENT_SLOW, Kind.CLIENT_READY] * (len(kinds) // 2)


def test_point_13_a_slow_client_pauses_only_its_own_upstream(lab: Lab) -> None:
    slow, quick = lab.through(), lab.through()
    with in_background(lambda: slow.upstream.push(pattern(16 * MiB))):
        lab.relay.copy.wait_for(Kind.CLIENT_SLOW, lab.relay.connections - 1)
        for _ in range(100):
            answered(quick)
        slow.client.read(16 * MiB)
    leave(quick)
    leave(slow)


def test_point_13_a_slow_observer_slows_nothing(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> None:
    relay = make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name)
    wire = Wire(connect(relay.address), upstream_listener)
    answered(wire)
    relay.copy.wait_for(Kind.UPSTREAM_DATA, 1)
    relay.copy.pause()
    request, answer = post(body=pattern(7000)), ANSWER * 20
    for _ in range(2500):
        wire.client.send(request)
        assert wire.upstream.read(len(request)) == request
        wire.upstream.send(answer)
        assert wire.client.read(len(answer)) == answer
    assert relay.stats()["pending_bytes"] > MiB
    relay.copy.go_on()
    leave(wire)
    records = relay.copy.wait_for(Kind.CLOSED, 1)
    assert sum(len(r.data) for r in records if r.kind is Kind.UPSTREAM_DATA) == 2500 * len(answer) + len(OK)
    assert relay.stats()["dropped_batches"] == 0


def test_point_14_reads_are_stamped_when_they_are_read(lab: Lab) -> None:
    wire = lab.through()
    passes(wire.client, wire.upstream, post())
    brackets = []
    for n in range(1, 6):
        began = monotonic_ns()
        passes(wire.upstream, wire.client, chunk(RECORD) * n)  # several records in one read share its time
        brackets.append((began, monotonic_ns()))
    leave(wire)
    records = lab.relay.copy.wait_for(Kind.CLOSED, lab.relay.connections)
    down = [record for record in records if record.kind is Kind.UPSTREAM_DATA]
    assert len(down) == 5
    for record, (began, ended) in zip(down, brackets, strict=True):
        assert began <= record.t_ns <= ended  # the client may have it before our write returns: no bound for lag_ns here
        assert 0 < record.lag_ns < LAG_UNKNOWN
    assert [record.t_ns for record in records] == sorted(record.t_ns for record in records)


# --- lifecycle ---------------------------------------------------------------------------------------------------------------

DEPARTURES = {
    "during the upload": (post(body=pattern(100_000))[:-50_000], b""),
    "before the answer": (post(), b""),
    "in mid-stream": (post(), STREAM_HEAD + chunk(RECORD)),
    "in a whole answer": (post(), OK[:-1]),
    "on a kept connection's second request": (post() * 2, OK),
}


@pytest.mark.parametrize("moment", DEPARTURES)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_point_15_the_upstream_learns_that_the_client_left(lab: Lab, moment: str, how: str) -> None:
    """While nothing flows, and without a byte from upstream that would find it out."""
    up, down = DEPARTURES[moment]
    wire = lab.through()
    passes(wire.client, wire.upstream, up)
    passes(wire.upstream, wire.client, down)
    getattr(wire.client, how)()
    assert wire.upstream.ended() == ("eof" if how == "close" else "reset")
    wire.close()


def test_point_15_during_an_upload_that_is_not_read(lab: Lab) -> None:
    """The upstream takes nothing, so the client's bytes pile up in both kernels and in us; its reset overtakes them."""
    wire = lab.through()
    assert wire.client.push_until_stuck() > 0
    lab.relay.copy.wait_for(Kind.UPSTREAM_SLOW, lab.relay.connections)
    wire.client.reset()
    wire.upstream.hears_of_reset()
    assert wire.upstream.ended() == "reset"
    wire.close()


@pytest.mark.parametrize("down", [b"", STREAM_HEAD, STREAM_HEAD + chunk(RECORD), STREAM_HEAD + chunk(RECORD)[:9]])
def test_point_16_an_end_stays_what_it_was(lab: Lab, down: bytes) -> None:
    for how, expected in (("reset", "reset"), ("fin", "eof"), ("close", "eof")):
        wire = lab.through()
        passes(wire.client, wire.upstream, post())
        passes(wire.upstream, wire.client, down)
        getattr(wire.upstream, how)()
        assert wire.client.ended() == expected
        assert wire.client.n_bytes == len(down)
        wire.close()


REPLIES = {
    "/api/chat": b'{"error":',
    "/v1/chat/completions": b'{"error":{',
    "/v1/responses": b'{"error":{',
    "/v1/messages": b'{"type":"error"',
}


@pytest.mark.parametrize("path", REPLIES)
def test_point_17_an_unreachable_upstream_is_a_502_in_the_callers_shape(make_relay: MakeRelay, path: str, loop_name: str) -> None:
    listener = listen()
    where = listener.getsockname()
    listener.close()
    relay = make_relay(as_upstream(where), loop=loop_name, reply="qm_proxy.wire.replies:unreachable")
    client = Side(connect(relay.address))
    client.send(post(path.encode()))
    answer = client.rest()
    assert client.end == "eof"
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"\r\nX-QM-Proxy:" in head
    assert REPLIES[path].replace(b" ", b"") in body.replace(b" ", b"")
    assert f"http://127.0.0.1:{where[1]}".encode() in body
    client.close()
    records = relay.copy.wait_for(Kind.CLOSED, 1)
    assert [r.kind for r in records if r.kind is not Kind.CLIENT_EOF] == [
        Kind.OPENED,
        Kind.CLIENT_DATA,
        Kind.REFUSED,
        Kind.UPSTREAM_DATA,
        Kind.CLOSED,
    ]
    assert relay.copy.bytes_of(1, Kind.UPSTREAM_DATA) == answer
    assert relay.copy.bytes_of(1, Kind.REFUSED) == b"connection refused"


def test_point_17_no_post_is_sent_twice(lab: Lab) -> None:
    """The upstream dies between two requests of a kept connection: the client learns it, nobody tries again."""
    wire = lab.through()
    answered(wire)
    wire.upstream.close()
    wire.client.hears_of_its_end()
    wire.client.push(post())
    wire.client.rest()
    lab.listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        lab.listener.accept()
    wire.close()


def test_point_18_a_drained_relay_ends_with_its_last_stream(
    make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str
) -> None:
    relay = make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name)
    wire = Wire(connect(relay.address), upstream_listener)
    passes(wire.client, wire.upstream, post())
    relay.say(drain=True)
    relay.stats()
    with pytest.raises(ConnectionRefusedError):
        connect(relay.address)
    passes(wire.upstream, wire.client, ANSWER)
    assert relay.process.poll() is None
    leave(wire)
    assert relay.heard() == {"drained": True}
    assert relay.process.wait(10) == 0


def test_point_18_a_dead_pipe_costs_nothing(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> None:
    relay = make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name)
    wire = Wire(connect(relay.address), upstream_listener)
    answered(wire)
    relay.pipe.shutdown(socket.SHUT_RDWR)
    relay.pipe.close()
    for _ in range(100):
        answered(wire, post(body=pattern(3000)), ANSWER)
    leave(wire)
    assert relay.settled()["dropped_batches"] > 0


def test_point_19_a_thousand_idle_and_two_hundred_active(lab: Lab) -> None:
    idle = [lab.through() for _ in range(1000)]
    active = [lab.through() for _ in range(200)]
    assert lab.relay.stats()["connections_open"] == 1200
    for wire in active:
        wire.client.send(post())
    for wire in active:
        assert wire.upstream.read(len(post())) == post()
        wire.upstream.send(ANSWER)
    for wire in active:
        assert wire.client.read(len(ANSWER)) == ANSWER
    answered(idle[0])
    answered(idle[-1])
    for wire in idle + active:
        wire.close()


def upload(wire: Wire, size: int) -> None:
    """Zeros from a file, sent and dropped inside the kernel."""
    with open(os.memfd_create("zeros"), "rb") as zeros:  # noqa: PTH123
        os.truncate(zeros.fileno(), 64 * MiB)
        sent = 0
        sock = wire.client.sock
        while sent < size:
            sent += os.sendfile(sock.fileno(), zeros.fileno(), sent % (64 * MiB), min(size - sent, 64 * MiB - sent % (64 * MiB)))


def swallow(wire: Wire, size: int) -> None:
    left = size
    sock = wire.upstream.sock
    while left:
        taken = len(sock.recv(min(left, 4 * MiB)))
        assert taken, "the upload ended early"
        left -= taken


def test_point_20_a_gibibyte_goes_up_in_constant_memory(lab: Lab) -> None:
    relay = lab.relay
    relay.copy.keep = False
    size = 1 << 30
    wire = lab.through()
    answered(wire, post(body=pattern(2 * MiB)))
    head = b"POST /api/blobs/sha256:ab HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    passes(wire.client, wire.upstream, head)
    relay.stats()
    before, peak = relay.rss_bytes(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, relay.rss_bytes())

    wire.client.sock.settimeout(None)  # sendfile wants a blocking socket
    with in_background(watch):
        with in_background(lambda: upload(wire, size)):
            swallow(wire, size)
        done.set()
    answered(wire, b"0\r\n\r\n")
    leave(wire)
    relay.copy.keep = True
    assert peak - before <= 8 * MiB


def test_point_20_early_answers_and_expect(lab: Lab) -> None:
    head = b"POST /api/blobs/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n"
    wire = lab.through()
    passes(wire.client, wire.upstream, head)
    assert wire.client.is_quiet()  # nobody says 100 but the upstream
    passes(wire.upstream, wire.client, b"HTTP/1.1 100 Continue\r\n\r\n")
    passes(wire.client, wire.upstream, pattern(100_000))
    passes(wire.upstream, wire.client, OK)  # the rest of the body has not come yet
    passes(wire.client, wire.upstream, pattern(100_000))
    leave(wire)


def test_point_21_no_path_is_ours(lab: Lab) -> None:
    wire = lab.through()
    for path in (b"/", b"/healthz", b"/metrics", b"/mcp", b"/api/v1/status", b"/api/v1/events", b"/stop", b"*"):
        answered(wire, get(path))
    leave(wire)


def test_points_of_the_relay_need_no_upstream_to_be_ready(make_relay: MakeRelay, loop_name: str) -> None:
    """An upstream that is not there yet is a warning, not an exit: it may come later."""
    listener = listen()
    where = listener.getsockname()
    listener.close()
    relay = make_relay(Upstream(host="127.0.0.1", port=where[1]), loop=loop_name)
    early = Side(connect(relay.address))
    early.send(get(b"/"))
    assert early.rest().startswith(b"HTTP/1.1 502 ")
    with listen(where) as late:
        wire = Wire(connect(relay.address), late)
        answered(wire)
        leave(wire)
    early.close()
