"""Ends while somebody is slow: nothing is read, buffers are full, and the end must still arrive, and as what it is."""

from __future__ import annotations

from qm_proxy.relay.pipe import Kind
from tests.integration.transparency.cases import ANSWER, OK, get, post
from tests.integration.transparency.conftest import Lab
from tests.integration.transparency.rig import Side, Wire, in_background, pattern

DATA = pattern(1 << 20, 7)


def stuck_answer(wire: Wire) -> int:
    """The upstream writes until nobody takes any more, and the client reads nothing."""
    sent = 0
    wire.upstream.sock.settimeout(0.2)
    try:
        while True:
            sent += wire.upstream.sock.send(DATA[sent % len(DATA) :])
    except TimeoutError:
        wire.upstream.sock.settimeout(10)
    return sent


def is_prefix(side: Side) -> bool:
    """What the side saw at first is what was sent at first."""
    seen = side.seen()
    return seen.data == (DATA + DATA)[: len(seen.data)]


def test_upstream_resets_while_the_client_is_slow(lab: Lab) -> None:
    """All that our kernel had received is delivered, then the reset: at least what a direct client finds in its own kernel."""
    n_bytes = []
    for wire in (lab.direct(), lab.through()):
        stuck_answer(wire)
        wire.upstream.reset()
        assert wire.client.ended() == "reset"
        assert is_prefix(wire.client)
        n_bytes.append(wire.client.n_bytes)
        wire.close()
    direct, through = n_bytes
    assert through >= direct > 0
    records = lab.relay.copy.wait_for(Kind.CLOSED, lab.relay.connections)
    assert [record.kind for record in records][-2:] == [Kind.UPSTREAM_RESET, Kind.CLOSED]
    read = sum(len(record.data) for record in records if record.kind is Kind.UPSTREAM_DATA)
    skipped = sum(int.from_bytes(record.data, "little") for record in records if record.kind is Kind.UPSTREAM_SKIPPED)
    assert through == read + skipped  # nothing that we had read was thrown away


def test_upstream_ends_while_the_client_is_slow(lab: Lab) -> None:
    wire = lab.through()
    sent = stuck_answer(wire)
    wire.upstream.close()
    assert wire.client.ended() == "eof"
    assert wire.client.n_bytes == sent
    wire.close()


def test_slow_client_resets(lab: Lab) -> None:
    wire = lab.through()
    stuck_answer(wire)
    wire.client.reset()
    wire.upstream.hears_of_reset()
    assert wire.upstream.send_fails()
    wire.close()


def test_slow_client_closes_with_unread_bytes(lab: Lab) -> None:
    wire = lab.through()
    stuck_answer(wire)
    wire.client.close()  # the kernel makes it a reset
    assert wire.upstream.ended() == "reset"
    wire.close()


def test_slow_client_half_closes_and_then_reads(lab: Lab) -> None:
    wire = lab.through()
    sent = stuck_answer(wire)
    wire.client.fin()
    assert wire.upstream.ended() == "eof"
    wire.upstream.close()
    assert wire.client.ended() == "eof"
    assert wire.client.n_bytes == sent
    wire.close()


def test_slow_client_half_closes_and_resets(lab: Lab) -> None:
    wire = lab.through()
    stuck_answer(wire)
    wire.client.fin()
    assert wire.upstream.ended() == "eof"
    wire.client.reset()
    wire.upstream.hears_of_reset()
    wire.close()


def test_upstream_resets_an_upload_that_is_stuck(lab: Lab) -> None:
    wire = lab.through()
    wire.client.push_until_stuck()
    wire.upstream.reset()
    wire.client.hears_of_reset()
    assert wire.client.ended() == "reset"
    wire.close()


def test_upstream_answers_an_upload_that_is_stuck_and_resets(lab: Lab) -> None:
    """The relay's write upstream fails before it has read the answer; the answer must not be lost."""
    wire = lab.through()
    wire.client.push_until_stuck()
    wire.upstream.send(ANSWER)
    wire.upstream.close()  # with unread bytes: a reset
    wire.client.hears_of_reset()
    assert wire.client.rest() == ANSWER
    assert wire.client.end == "reset"
    wire.close()


def test_upstream_answers_an_upload_and_resets_while_bytes_fly(lab: Lab) -> None:
    """The same without waiting, many times: the answer and the client's next bytes meet in every order."""
    for n in range(60):
        wire = lab.through()
        with in_background(lambda: wire.client.push(DATA[: 4000 * n + 1])):  # noqa: B023
            wire.upstream.read(1)
            wire.upstream.send(OK)
            wire.client.awaits(len(OK))
            wire.upstream.reset()
        wire.client.hears_of_reset()
        assert wire.client.rest() == OK
        wire.close()


def test_client_ends_an_upload_that_is_stuck(lab: Lab) -> None:
    wire = lab.through()
    sent = wire.client.push_until_stuck()
    wire.client.close()
    assert wire.upstream.ended() == "eof"
    assert wire.upstream.n_bytes == sent
    wire.close()


def test_both_ways_stuck_and_then_read(lab: Lab) -> None:
    wire = lab.through()
    up, down = wire.client.push_until_stuck(), stuck_answer(wire)
    wire.client.read(down)
    wire.upstream.read(up)
    assert wire.client.n_bytes == down
    assert wire.upstream.n_bytes == up
    wire.client.send(get(b"/"))
    assert wire.upstream.read(len(get(b"/"))) == get(b"/")
    wire.close()


def test_both_ways_stuck_and_then_reset(lab: Lab) -> None:
    for who in ("client", "upstream"):
        wire = lab.through()
        wire.client.push_until_stuck()
        stuck_answer(wire)
        leaving, staying = (wire.client, wire.upstream) if who == "client" else (wire.upstream, wire.client)
        leaving.reset()
        assert staying.ended() == "reset"
        wire.close()


def test_pauses_are_stamped(lab: Lab) -> None:
    wire = lab.through()
    number = lab.relay.connections
    up = wire.client.push_until_stuck()
    wire.upstream.read(up)
    down = stuck_answer(wire)
    wire.client.read(down)
    wire.client.send(post())
    assert wire.upstream.read(len(post())) == post()
    wire.client.close()
    wire.upstream.rest()
    wire.close()
    records = lab.relay.copy.wait_for(Kind.CLOSED, number)
    for slow, ready in ((Kind.UPSTREAM_SLOW, Kind.UPSTREAM_READY), (Kind.CLIENT_SLOW, Kind.CLIENT_READY)):
        kinds = [record.kind for record in records if record.kind in (slow, ready)]
        assert kinds == [slow, ready] * (len(kinds) // 2)
        assert kinds


def test_twenty_aborts_in_a_row(lab: Lab) -> None:
    for how in ("close", "reset"):
        for n in range(20):
            wire = lab.through()
            wire.client.send(post())
            assert wire.upstream.read(len(post())) == post()
            wire.upstream.send(ANSWER[: 10 * n])
            wire.client.read(10 * n)
            getattr(wire.client, how)()
            assert wire.upstream.ended() == ("eof" if how == "close" else "reset")
            wire.close()
    wire = lab.through()
    wire.client.send(post())
    assert wire.upstream.read(len(post())) == post()
    wire.close()
