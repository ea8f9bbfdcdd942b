"""The observer is fed with batches as a relay packs them; what it tells its sinks is what must be right."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.suite import Suite
from qm_proxy.events import HostSample, Nanoseconds, Residency, ResidentModel
from qm_proxy.exchange import Exchange
from qm_proxy.findings import Finding
from qm_proxy.observer import Fanout, Observer
from qm_proxy.record import Opened, Progress, Record
from qm_proxy.relay.pipe import LAG_UNKNOWN, Batch, Kind, Reader, pack_batch, pack_record
from qm_proxy.wire.http import RequestHead

MS = 1_000_000
T0 = 7_000_000 * MS


class Told:
    def __init__(self, fails: str = "") -> None:
        self.openings: list[Opened] = []
        self.records: list[Record] = []
        self.findings: list[Finding] = []
        self.steps = 0
        self.fails = fails

    def _may_fail(self, name: str) -> None:
        if name == self.fails:
            raise RuntimeError("full")

    def opened(self, opened: Opened) -> None:
        self.openings.append(opened)
        self._may_fail("opened")

    def progress(self, progress: Progress) -> None:
        self.steps += 1
        self._may_fail("progress")

    def found(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._may_fail("found")

    def closed(self, record: Record) -> None:
        self.records.append(record)
        self._may_fail("closed")


class Relay:
    """Packs records as a relay does: offsets of each side, sequence of each batch; `lose` drops what is packed so far."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.sequence = 0
        self.now = T0
        self.offsets: dict[tuple[int, str], int] = {}
        self.payload = b""

    def say(self, kind: Kind, connection: int = 1, data: bytes = b"", *, lag_ns: int = 50_000) -> Relay:
        side = "client" if kind.name.startswith("CLIENT") else "upstream"
        offset = self.offsets.get((connection, side), 0)
        passed = int.from_bytes(data, "little") if kind.name.endswith("SKIPPED") else len(data)
        if kind.name.endswith(("DATA", "SKIPPED")):
            self.offsets[connection, side] = offset + passed
        self.now += MS
        self.payload += pack_record(kind, connection, self.now, offset, lag_ns, data)
        return self

    def ask(self, connection: int = 1, model: str = "steady") -> Relay:
        return self.say(Kind.CLIENT_DATA, connection, request(model))

    def answer(self, n: int = 3, connection: int = 1) -> Relay:
        for piece in answer(n):
            self.say(Kind.UPSTREAM_DATA, connection, piece)
        return self

    def batch(self) -> Batch:
        whole = pack_batch(
            self.payload, relay=self.number, sequence=self.sequence, dropped_batches=0, dropped_records=0, dropped_bytes=0
        )
        self.sequence += 1
        self.payload = b""
        [batch] = Reader().feed(whole)
        return batch

    def lose(self) -> None:
        self.batch()


def request(model: str = "steady") -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
    return b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def answer(n: int, *, looping: bool = False) -> list[bytes]:
    """The head, n chunked records of text, and the terminal record with the last chunk."""
    lines = [
        {
            "model": "steady",
            "created_at": f"2026-11-24T08:00:{i % 60:02d}.5Z",
            "message": {"role": "assistant", "content": "the same words said again, " if looping else f"word {i} "},
            "done": False,
        }
        for i in range(n)
    ]
    last = {"model": "steady", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [json.dumps(line).encode() + b"\n" for line in (*lines, last)]
    chunked = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return [head, *chunked[:-1], chunked[-1] + b"0\r\n\r\n"]


class Scene:
    def __init__(self) -> None:
        self.told = Told()
        self.observer = Observer(self.make)
        self.made: list[tuple[int, int]] = []
        self.fails = False

    def make(self, head: RequestHead, connection: int, relay: int) -> Exchange:
        if self.fails:
            raise ValueError("no more room")
        self.made.append((relay, connection))
        return Exchange(head, self.told, connection=connection, trouble=self.observer.trouble)

    def take(self, relay: Relay) -> None:
        self.observer.take(relay.batch())

    @property
    def records(self) -> list[Record]:
        return self.told.records

    @property
    def only(self) -> Record:
        [record] = self.told.records
        return record


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def relay() -> Relay:
    return Relay()


def test_one_exchange_from_first_byte_to_last(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED, data=b"127.0.0.1:5000").ask().answer(4))
    assert (scene.only.ending, scene.only.model, scene.only.chunks) == ("complete", "steady", 4)
    assert scene.only.bytes_out == sum(map(len, answer(4))) - len(answer(4)[0]) - _framing(4)
    assert scene.observer.bytes_missed == scene.observer.batches_missed == 0
    assert scene.observer.troubles == {}
    assert scene.observer.in_flight() == []


def _framing(n: int) -> int:
    """Bytes of the chunked coding itself in answer(n)."""
    bare = answer(n)[1:]
    return sum(len(piece.partition(b"\r\n")[0]) + 4 for piece in bare) + len(b"0\r\n\r\n")


def test_cuts_of_the_bytes_change_nothing(scene: Scene, relay: Relay) -> None:
    relay.say(Kind.OPENED)
    for byte in request():
        relay.say(Kind.CLIENT_DATA, data=bytes([byte]))
    for byte in b"".join(answer(2)):
        relay.say(Kind.UPSTREAM_DATA, data=bytes([byte]))
        scene.take(relay)
    assert (scene.only.ending, scene.only.chunks) == ("complete", 2)


def test_two_relays_have_connections_of_their_own(scene: Scene) -> None:
    one, two = Relay(1), Relay(2)
    scene.take(one.say(Kind.OPENED).ask(model="a"))
    scene.take(two.say(Kind.OPENED).ask(model="b"))
    scene.take(two.answer())
    assert scene.only.model == "b"
    scene.take(one.answer())
    assert [r.model for r in scene.records] == ["b", "a"]
    assert scene.made == [(1, 1), (2, 1)]


# --- dropped batches --------------------------------------------------------------------------------------------------


def test_a_dropped_batch_is_counted_to_the_byte_and_costs_only_its_connection(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED, 1).say(Kind.OPENED, 2).ask(1).ask(2))
    pieces = answer(6)
    for piece in pieces[:3]:
        relay.say(Kind.UPSTREAM_DATA, 1, piece)
        relay.say(Kind.UPSTREAM_DATA, 2, piece)
    scene.take(relay)
    relay.say(Kind.UPSTREAM_DATA, 1, pieces[3]).lose()
    for piece in pieces[3:]:
        relay.say(Kind.UPSTREAM_DATA, 2, piece)
    for piece in pieces[4:]:
        relay.say(Kind.UPSTREAM_DATA, 1, piece)
    scene.take(relay)
    assert scene.observer.batches_missed == 1
    assert scene.observer.bytes_missed == len(pieces[3])
    whole = next(r for r in scene.records if r.chunks == 6)
    assert (whole.ending, whole.undecoded) == ("complete", None)
    scene.take(relay.say(Kind.CLOSED, 1).say(Kind.CLOSED, 2))
    [hurt] = [r for r in scene.records if r is not whole]
    assert "not copied" in (hurt.undecoded or "")


def test_the_request_after_a_hole_is_whole_again(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED).ask())
    relay.answer().lose()
    scene.take(relay.ask(model="again").answer(5))
    assert (scene.records[-1].model, scene.records[-1].chunks, scene.records[-1].ending) == ("again", 5, "complete")
    assert scene.observer.bytes_missed == len(b"".join(answer(3)))
    assert (len(scene.records), scene.records[0].ending == "complete") == (2, False)
    assert scene.records[0].undecoded == "its end was not seen"


def test_a_dropped_batch_that_held_the_end_of_an_answer(scene: Scene, relay: Relay) -> None:
    pieces = answer(4)
    relay.say(Kind.OPENED).ask()
    for piece in pieces[:3]:
        relay.say(Kind.UPSTREAM_DATA, data=piece)
    scene.take(relay)
    for piece in pieces[3:]:
        relay.say(Kind.UPSTREAM_DATA, data=piece)
    relay.lose()
    scene.take(relay.ask(model="again").answer(5).ask(model="third").answer(2))
    assert [(r.model, r.chunks) for r in scene.records] == [("steady", 2), ("again", 5), ("third", 2)]
    assert [r.ending for r in scene.records[1:]] == ["complete", "complete"]
    assert scene.observer.bytes_missed == len(b"".join(pieces[3:]))


def test_a_batch_of_others_is_dropped_and_the_stream_goes_on(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED, 1).say(Kind.OPENED, 2).ask(1))
    relay.ask(2).lose()
    scene.take(relay.answer(6).ask(1, "next").answer(2))
    assert [(r.model, r.chunks, r.ending) for r in scene.records] == [("steady", 6, "complete"), ("next", 2, "complete")]
    assert scene.observer.bytes_missed == 0


def test_a_lost_opening_alone_costs_nothing(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED, 9))
    relay.say(Kind.OPENED).lose()
    scene.take(relay.ask().answer())
    assert (scene.only.ending, scene.only.chunks, scene.observer.bytes_missed) == ("complete", 3, 0)


def test_skipped_bytes_are_no_missed_bytes(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED).ask())
    pieces = answer(3)
    relay.say(Kind.UPSTREAM_DATA, data=pieces[0])
    relay.say(Kind.UPSTREAM_SKIPPED, data=len(pieces[1]).to_bytes(8, "little"))
    for piece in pieces[2:]:
        relay.say(Kind.UPSTREAM_DATA, data=piece)
    scene.take(relay.say(Kind.CLOSED))
    assert scene.observer.bytes_missed == 0
    assert "not copied" in (scene.only.undecoded or "")


# --- a new observer on old connections --------------------------------------------------------------------------------


def test_a_new_observer_waits_in_mid_stream_for_the_next_request(scene: Scene, relay: Relay) -> None:
    relay.say(Kind.OPENED).ask()
    relay.say(Kind.UPSTREAM_DATA, data=answer(6)[0]).lose()  # all that the former observer had
    for piece in answer(6)[1:]:
        relay.say(Kind.UPSTREAM_DATA, data=piece)
    scene.take(relay)
    assert scene.records == []
    assert scene.observer.idle() == {}  # not understood, so not known to be idle
    scene.take(relay.ask(model="next").answer(4))
    assert (scene.only.model, scene.only.chunks, scene.only.ending, scene.only.undecoded) == ("next", 4, "complete", None)


def test_what_passed_before_a_new_observer_is_not_missed(scene: Scene, relay: Relay) -> None:
    """A kept connection: its first sign of life to the new observer is a request, far from offset 0 on both sides."""
    relay.say(Kind.OPENED).ask().answer(20).lose()
    scene.take(relay.ask(model="next").answer(4))
    assert scene.observer.bytes_missed == 0
    assert (scene.only.model, scene.only.chunks, scene.only.undecoded) == ("next", 4, None)
    assert scene.only.bytes_out < len(b"".join(answer(4)))


def test_a_body_in_mid_request_is_no_beginning(scene: Scene, relay: Relay) -> None:
    relay.say(Kind.OPENED).say(Kind.CLIENT_DATA, data=request()[:40]).lose()
    scene.take(relay.say(Kind.CLIENT_DATA, data=request()[40:]).answer())
    assert (scene.records, scene.made) == ([], [])
    scene.take(relay.ask(model="next").answer())
    assert scene.only.model == "next"


def test_the_first_sequence_tells_what_a_new_observer_never_had(scene: Scene, relay: Relay) -> None:
    relay.sequence = 41
    scene.take(relay.say(Kind.OPENED))
    assert (scene.observer.first_sequence, scene.observer.batches_missed) == ({1: 41}, 0)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_slow_client_is_over_when_it_has_taken_all(scene: Scene, relay: Relay) -> None:
    pieces = answer(2)
    relay.say(Kind.OPENED).ask().say(Kind.UPSTREAM_DATA, data=pieces[0]).say(Kind.CLIENT_SLOW)
    for piece in pieces[1:]:
        relay.say(Kind.UPSTREAM_DATA, data=piece, lag_ns=LAG_UNKNOWN)
    scene.take(relay)
    assert scene.records == []
    assert len(scene.observer.in_flight()) == 1
    scene.take(relay.say(Kind.CLIENT_READY))
    assert scene.only.ending == "complete"
    assert scene.observer.in_flight() == []
    assert scene.observer.idle() == {1: [1]}


def test_a_client_that_leaves_with_a_backlog(scene: Scene, relay: Relay) -> None:
    pieces = answer(2)
    relay.say(Kind.OPENED).ask().say(Kind.UPSTREAM_DATA, data=pieces[0]).say(Kind.CLIENT_SLOW)
    for piece in pieces[1:]:
        relay.say(Kind.UPSTREAM_DATA, data=piece, lag_ns=LAG_UNKNOWN)
    scene.take(relay.say(Kind.CLIENT_RESET).say(Kind.CLOSED))
    assert scene.only.ending == "client_disconnect"
    assert scene.observer.connections == 0


def test_refused_by_an_upstream_that_is_not_there(scene: Scene, relay: Relay) -> None:
    own = b'HTTP/1.1 502 Bad Gateway\r\nContent-Length: 13\r\n\r\n{"error":"x"}'
    scene.take(relay.say(Kind.OPENED).ask().say(Kind.REFUSED, data=b"Connection refused").say(Kind.UPSTREAM_DATA, data=own))
    scene.take(relay.say(Kind.UPSTREAM_EOF).say(Kind.CLOSED))
    assert (scene.only.ending, scene.only.error) == ("upstream_unreachable", "Connection refused")


@pytest.mark.parametrize(("kind", "ending"), [(Kind.SHUTDOWN, "shutdown"), (Kind.CUT, "guard_cut")])
def test_what_we_ended_ourselves(scene: Scene, relay: Relay, kind: Kind, ending: str) -> None:
    relay.say(Kind.OPENED).ask()
    for piece in answer(4)[:3]:
        relay.say(Kind.UPSTREAM_DATA, data=piece)
    scene.take(relay.say(kind))
    assert (scene.only.ending, scene.only.chunks) == (ending, 2)
    assert scene.observer.in_flight() == []
    scene.take(relay.say(Kind.CLOSED))
    assert len(scene.records) == 1


def test_a_shutdown_after_the_answer_is_none(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED).ask().answer().say(Kind.SHUTDOWN).say(Kind.CLOSED))
    assert scene.only.ending == "complete"


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        (Kind.CLIENT_RESET, "client_disconnect"),
        (Kind.UPSTREAM_EOF, "upstream_truncated"),
        (Kind.UPSTREAM_RESET, "upstream_truncated"),
    ],
)
def test_who_ended_a_stream(scene: Scene, relay: Relay, kind: Kind, ending: str) -> None:
    relay.say(Kind.OPENED).ask()
    for piece in answer(4)[:3]:
        relay.say(Kind.UPSTREAM_DATA, data=piece)
    scene.take(relay.say(kind).say(Kind.CLOSED))
    assert scene.only.ending == ending


def test_a_relay_that_is_gone_ends_its_connections_and_no_others(scene: Scene) -> None:
    one, two = Relay(1), Relay(2)
    for relay in (one, two):
        scene.take(relay.say(Kind.STATS, 0, b'{"relay": 1}').say(Kind.OPENED).ask())
    scene.observer.relay_gone(1, Nanoseconds(T0 + 10 * MS))
    assert len(scene.records) == 1
    assert scene.only.ending != "complete"
    assert (list(scene.observer.relays), scene.observer.connections) == ([2], 1)
    scene.take(two.answer())
    assert scene.records[-1].ending == "complete"
    scene.observer.relay_gone(7, Nanoseconds(T0))  # never heard of


def test_idle_names_what_is_understood_and_quiet(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED, 1).say(Kind.OPENED, 2).say(Kind.OPENED, 3).ask(2).ask(3).answer(connection=3))
    assert scene.observer.idle() == {1: [1, 3]}
    scene.take(relay.answer(connection=2))
    assert scene.observer.idle() == {1: [1, 2, 3]}


# --- what fails in here -----------------------------------------------------------------------------------------------


def test_a_failure_of_ours_gives_one_connection_up_until_its_next_request(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED, 1).say(Kind.OPENED, 2).ask(2))
    scene.fails = True
    scene.take(relay.ask(1))
    scene.fails = False
    assert scene.observer.connections_given_up == 1
    assert scene.observer.troubles == {"ValueError: no more room": 1}
    scene.take(relay.answer(connection=1).answer(connection=2))
    assert len(scene.records) == 1
    scene.take(relay.ask(1, "again").answer(connection=1))
    assert [r.model for r in scene.records] == ["steady", "again"]


def test_bytes_that_are_no_http_are_counted(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED).say(Kind.CLIENT_DATA, data=b"\x16\x03\x01\x02\x00\x01" * 20).say(Kind.CLOSED))
    assert scene.records == []
    assert scene.observer.connections == 0


def test_an_answer_that_is_no_http_is_a_trouble(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.OPENED).ask().say(Kind.UPSTREAM_DATA, data=b"SSH-2.0-OpenSSH_9.6\r\n\r\n" * 4).say(Kind.CLOSED))
    assert "http upstream" in scene.observer.troubles
    assert len(scene.records) == 1
    assert scene.only.undecoded is not None


def test_troubles_have_at_most_a_hundred_names(scene: Scene) -> None:
    for n in range(300):
        scene.observer.trouble(f"name {n}")
    scene.observer.trouble("name 0")
    assert (len(scene.observer.troubles), scene.observer.troubles["name 0"]) == (100, 2)


def test_stats_and_records_of_unknown_connections(scene: Scene, relay: Relay) -> None:
    scene.take(relay.say(Kind.STATS, 0, b'{"dropped": 3}').say(Kind.CLOSED, 77))
    assert (scene.observer.relays, scene.observer.connections) == ({1: {"dropped": 3}}, 0)
    scene.take(relay.say(Kind.STATS, 0, b"{torn"))
    assert scene.observer.relays == {1: {"dropped": 3}}
    assert len(scene.observer.troubles) == 1


# --- beside and clock -------------------------------------------------------------------------------------------------


def test_who_is_in_flight_hears_of_the_host_and_of_time(scene: Scene, relay: Relay) -> None:
    seen: list[Any] = []

    class Watch:
        def see(self, event: Any) -> tuple[()]:
            seen.append(event)
            return ()

    scene.observer = Observer(lambda head, c, r: Exchange(head, scene.told, detectors=lambda opened: [Watch()]))
    scene.observer.beside(HostSample(Nanoseconds(T0)))
    scene.take(relay.say(Kind.OPENED).ask())
    loaded = Residency(Nanoseconds(T0 + MS), (ResidentModel("steady", "d", None, None, 4096, None),))
    scene.observer.beside(loaded)
    assert seen == [loaded]
    scene.observer.tick(Nanoseconds(T0 + 900 * MS))
    assert scene.told.steps == 1


def test_the_relay_gets_the_core_every_few_records(relay: Relay) -> None:
    breaths: list[int] = []
    observer = Observer(lambda head, c, r: Exchange(head, Told()), lambda: breaths.append(1))
    observer.take(relay.say(Kind.OPENED).ask().answer(30).batch())
    assert observer.records == 34
    assert len(breaths) == 3  # the request, the tokens, which are one piece of work, and the end
    for c in range(2, 8):
        relay.say(Kind.OPENED, c).ask(c)
    observer.take(relay.batch())
    before = len(breaths)
    streams = [answer(9)[:-1] for _ in range(2, 8)]
    for pieces in zip(*streams, strict=True):
        for c, piece in enumerate(pieces, 2):
            relay.say(Kind.UPSTREAM_DATA, c, piece)
    observer.take(relay.batch())
    assert len(breaths) - before >= 2 * 6  # six heads, and of each stream its nine tokens


def test_a_sink_that_fails_is_counted_and_stops_no_other(relay: Relay) -> None:
    class Failing(Told):
        pass

    failing, sound = Failing("closed"), Told()
    fanout = Fanout([failing, sound])
    observer = Observer(lambda head, c, r: Exchange(head, fanout))
    observer.take(relay.say(Kind.OPENED).ask().answer().batch())
    observer.take(relay.ask().answer().batch())
    assert fanout.failures == {"Failing": 2}
    assert (len(sound.openings), len(sound.records)) == (2, 2)


def test_an_answer_whose_request_was_lost_does_not_cost_the_next_exchange() -> None:
    scene, relay = Scene(), Relay()
    scene.take(relay.say(Kind.OPENED, 1))
    for at, (kind, piece) in enumerate(_records("first")):
        relay.say(kind, 1, piece)
        if at == 2:  # of the first exchange only the answer's head comes through
            scene.take(relay)
        else:
            relay.lose()
    for kind, piece in _records("second"):
        scene.take(relay.say(kind, 1, piece))
    [record] = scene.records
    assert (record.model, record.ending, record.chunks, record.undecoded) == ("second", "complete", 3, None)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_dropped_whole_exchanges_are_read_whole(data: st.DataObject) -> None:
    """Two kept connections, one record a batch, any batches dropped: nothing raises, and an exchange all of whose batches came
    through is read whole, whatever was lost before it."""
    scene, relay = Scene(), Relay()
    scene.take(relay.say(Kind.OPENED, 1).say(Kind.OPENED, 2))
    exchanges = 4
    lost: dict[tuple[int, int], int] = {}
    for n in range(exchanges):
        for records in zip(_records(f"c1-{n}"), _records(f"c2-{n}"), strict=True):
            for connection, (kind, piece) in enumerate(records, 1):
                relay.say(kind, connection, piece)
                if data.draw(st.integers(0, 6)) == 0:
                    lost[connection, n] = lost.get((connection, n), 0) + 1
                    relay.lose()
                else:
                    scene.take(relay)
    scene.take(relay.say(Kind.CLOSED, 1).say(Kind.CLOSED, 2))
    assert not [name for name in scene.observer.troubles if "Error" in name]
    assert scene.observer.in_flight() == []
    for connection in (1, 2):
        for n in range(exchanges):
            if not lost.get((connection, n)):
                [record] = [r for r in scene.records if r.model == f"c{connection}-{n}"]
                assert (record.ending, record.chunks, record.undecoded) == ("complete", 3, None)


def _records(model: str) -> list[tuple[Kind, bytes]]:
    """One exchange: its request in two pieces, its answer in five."""
    head, end, body = request(model).partition(b"\r\n\r\n")
    return [(Kind.CLIENT_DATA, head + end), (Kind.CLIENT_DATA, body), *((Kind.UPSTREAM_DATA, p) for p in answer(3))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_how_the_relay_batches_changes_nothing(data: st.DataObject) -> None:
    """Three streams side by side with pauses, loops, a slow client and a cut read: the same records and findings, whether each
    read came in a batch of its own or all in one."""
    said: list[tuple[Kind, int, bytes, int]] = []
    for c in (1, 2, 3):
        said += [(Kind.OPENED, c, b"", 0), (Kind.CLIENT_DATA, c, request(f"m{c}"), 0)]
    streams = {c: answer(data.draw(st.integers(1, 60)), looping=c == 1) for c in (1, 2, 3)}
    cut = data.draw(st.integers(1, 40))
    if len(streams[2]) > cut:
        streams[2][cut : cut + 1] = [streams[2][cut][:20], streams[2][cut][20:]]
    while streams:
        c = data.draw(st.sampled_from(sorted(streams)))
        for _ in range(data.draw(st.integers(1, 8))):
            slow = data.draw(st.integers(0, 30)) == 0
            if streams[c]:
                said.append((Kind.UPSTREAM_DATA, c, streams[c].pop(0), LAG_UNKNOWN if slow else data.draw(st.integers(0, 10**6))))
        if not streams[c]:
            del streams[c]
            said.append((Kind.CLIENT_READY, c, b"", 0))

    def seen(ends: set[int]) -> tuple[list[Any], list[Any]]:
        told, relay = Told(), Relay()
        suite = Suite()

        def make(head: RequestHead, connection: int, relay: int) -> Exchange:
            return Exchange(
                head, told, connection=connection, unix_ns_of=lambda t: t, detectors=suite.detectors_for, trouble=troubles.append
            )

        observer, troubles = Observer(make), list[str]()
        for i, (kind, c, piece, lag_ns) in enumerate(said):
            relay.say(kind, c, piece, lag_ns=lag_ns)
            if i in ends or i == len(said) - 1:
                observer.take(relay.batch())
        assert not troubles
        assert not observer.troubles
        assert len(told.records) == 3
        records = {r.model: replace(r, id="", opened=None, findings=[], series=None) for r in told.records}
        series = {r.model: r.series and replace(r.series, start_unix_ns=0) for r in told.records}
        findings = sorted((f.kind, f.t_ns, f.chunk or 0, f.summary, repr(f.evidence)) for f in told.findings)
        return [records, series], findings

    alone = seen(set(range(len(said))))
    assert seen(set()) == alone
    assert seen(data.draw(st.sets(st.integers(0, len(said)), max_size=6))) == alone
    assert any(finding[0] == "loop.token" for finding in alone[1]) or alone[0][0]["m1"].chunks < 40
