"""The one case in which we speak: the upstream cannot be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qm_proxy.relay.addresses import Upstream
from qm_proxy.relay.farewell import HEAD_BYTES
from qm_proxy.relay.pipe import Kind
from tests.integration.transparency.cases import OK, get, post
from tests.integration.transparency.conftest import LOOPS
from tests.integration.transparency.rig import RelayProcess, Side, Wire, as_upstream, connect, in_background, listen, pattern

MakeRelay = Callable[..., RelayProcess]


def nowhere() -> Upstream:
    """An address on which nothing listens (any more)."""
    with listen() as listener:
        return as_upstream(listener.getsockname())


@pytest.fixture(scope="module", params=LOOPS)
def refusing(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    relay = RelayProcess(nowhere(), loop=request.param)
    yield relay
    relay.close()


@pytest.fixture
def client(refusing: RelayProcess) -> Iterator[Side]:
    """A client of a relay without upstream; afterwards nothing of it is left."""
    descriptors = refusing.descriptors()
    side = Side(connect(refusing.address))
    refusing.connections += 1
    yield side
    side.close()
    assert refusing.settled()["internal_failures"] == 0
    assert refusing.descriptors() == descriptors


def is_refused(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
    return head.startswith(b"HTTP/1.1 502 ") and len(body) == length and b"connection refused" in body


def test_a_request_with_its_body(client: Side) -> None:
    client.send(post())
    assert is_refused(client.rest())
    assert client.end == "eof"


def test_the_answer_does_not_wait_for_the_body(client: Side) -> None:
    client.send(post(body=pattern(1000))[:-900])
    assert is_refused(client.rest())


def test_the_answer_survives_a_body_that_is_still_coming(client: Side) -> None:
    """A close upon unread bytes would be a reset, and the reset would take the answer back."""
    with in_background(lambda: client.send(post(body=pattern(8_000_000)))):
        client.awaits(1)
    assert is_refused(client.rest())
    assert client.end == "eof"


def test_a_head_in_pieces(client: Side) -> None:
    for n in range(len(head := get(b"/api/tags"))):
        assert client.is_quiet(0)
        client.send(head[n : n + 1])
    assert is_refused(client.rest())


def test_expect_is_answered_at_once(client: Side) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert is_refused(client.rest())


def test_bare_line_feeds(client: Side) -> None:
    client.send(b"GET / HTTP/1.1\nHost: h\n\n")
    assert is_refused(client.rest())


def test_a_head_that_does_not_end(client: Side) -> None:
    client.send(b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES)
    assert is_refused(client.rest())


def test_a_half_closed_torn_head(client: Side) -> None:
    client.send(b"GET /api/ta")
    client.fin()
    assert is_refused(client.rest())


def test_garbage(client: Side) -> None:
    client.send(b"\x16\x03\x01\x00\xa5" + pattern(300))
    client.fin()
    assert is_refused(client.rest())


def test_a_head_request_gets_no_body(client: Side) -> None:
    client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = client.rest()
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert answer.endswith(b"\r\n\r\n")


def test_a_client_that_says_nothing(client: Side, refusing: RelayProcess) -> None:
    assert client.is_quiet()
    client.fin()
    assert client.rest() == b""
    assert [r.kind for r in refusing.copy.wait_for(Kind.CLOSED, refusing.connections)] == [
        Kind.OPENED,
        Kind.CLIENT_EOF,
        Kind.CLOSED,
    ]


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_a_client_that_resets(client: Side, refusing: RelayProcess, sent: bytes) -> None:
    if sent:
        client.send(sent)
        refusing.copy.wait_for(Kind.CLIENT_DATA, refusing.connections)
    client.reset()
    kinds = [record.kind for record in refusing.copy.wait_for(Kind.CLOSED, refusing.connections)]
    assert kinds[-2:] == [Kind.CLIENT_RESET, Kind.CLOSED]


def test_a_client_that_resets_behind_its_request(client: Side, refusing: RelayProcess) -> None:
    client.send(post())
    client.awaits(1)
    client.reset()
    kinds = [record.kind for record in refusing.copy.wait_for(Kind.CLOSED, refusing.connections)]
    assert kinds[-2:] == [Kind.CLIENT_RESET, Kind.CLOSED]


def test_a_pipeline_gets_one_answer(client: Side) -> None:
    client.send(get(b"/a") + get(b"/b"))
    assert is_refused(client.rest())


def test_a_connection_opened_before_the_upstream_was_there(make_relay: MakeRelay, loop_name: str) -> None:
    """Clients open connections ahead of their requests: when the request comes, the upstream is tried once more."""
    where = nowhere()
    relay = make_relay(where, loop=loop_name)
    client = connect(relay.address)
    relay.stats()
    with listen((where.host, where.port)) as listener:
        assert Side(client).is_quiet(1.1)
        client.sendall(post())
        wire = Wire(client, listener)
        assert wire.upstream.read(len(post())) == post()
        wire.upstream.send(OK)
        assert wire.client.read(len(OK)) == OK
        wire.close()
    kinds = [record.kind for record in relay.copy.wait_for(Kind.CLOSED, 1)]
    assert Kind.REFUSED not in kinds
    assert Kind.CONNECTED in kinds


def test_a_reply_that_fails_is_replaced(make_relay: MakeRelay, loop_name: str) -> None:
    relay = make_relay(nowhere(), loop=loop_name, reply="json:loads")
    client = Side(connect(relay.address))
    client.send(post())
    assert is_refused(client.rest())
    client.close()
    assert relay.stats()["reply_failures"] == 1


@pytest.mark.parametrize("path", ["missing.sock", "x" * 200])
def test_a_unix_upstream_that_is_not_there(make_relay: MakeRelay, tmp_path: Path, path: str, loop_name: str) -> None:
    relay = make_relay(Upstream(unix=str(tmp_path / path)), loop=loop_name)
    client = Side(connect(relay.address))
    client.send(post())
    answer = client.rest()
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert str(tmp_path / path).encode() in answer
    client.close()


def test_a_name_that_nobody_knows(make_relay: MakeRelay, loop_name: str) -> None:
    relay = make_relay(Upstream(host="no\0name", port=1), loop=loop_name)
    client = Side(connect(relay.address))
    client.send(get(b"/"))
    assert b"cannot be resolved" in client.rest()
    client.close()
    assert relay.settled()["internal_failures"] == 0
