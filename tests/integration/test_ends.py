"""How an answer ended and who held it up, told from real sockets: clients that stop reading, servers that break off."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import pytest

from qm_proxy.servant import Servant

ASK = {"messages": [{"role": "user", "content": "go on"}], "stream": True}
PATIENCE_S = 60


def send(proxy: Servant, path: str, model: str, **more: Any) -> bytes:
    """One request; whatever came of the answer before it broke."""
    url = urlsplit(proxy.proxy)
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 0, timeout=PATIENCE_S)
    got = b""
    try:
        connection.request("POST", path, json.dumps(ASK | {"model": model} | more), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while piece := answer.read1(65536):
            got += piece
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return got


def ended(proxy: Servant) -> dict[str, Any]:
    """The one exchange, once it is over and stored, with its findings whole."""
    rows: list[dict[str, Any]] = []
    while not rows:
        rows = [row for row in proxy.ask("/api/v1/exchanges")["items"] if row["ending"]]
    row: dict[str, Any] = proxy.ask(f"/api/v1/exchanges/{rows[0]['id']}")
    row["findings"] = [f for f in proxy.ask("/api/v1/findings")["items"] if f["exchange_id"] == row["id"]]
    return row


@pytest.mark.parametrize(
    ("model", "path", "ending", "cause", "clean"),
    [
        ("no-done", "/api/chat", "upstream_truncated", "unknown", True),
        ("cutter", "/api/chat", "upstream_truncated", "connection_lost", False),
        ("cutter", "/v1/chat/completions", "upstream_truncated", "connection_lost", False),
        ("cutter", "/v1/responses", "upstream_truncated", "connection_lost", False),
        ("cutter", "/v1/messages", "upstream_truncated", "connection_lost", False),
        ("mid-crash", "/api/chat", "upstream_error", "crash", None),
        ("mid-crash", "/v1/chat/completions", "upstream_error", "crash", None),
        ("mid-crash", "/v1/responses", "upstream_truncated", "unknown", True),
        ("mid-crash", "/v1/messages", "upstream_truncated", "unknown", True),
        ("early-crash", "/api/chat", "upstream_error", "crash", None),
        ("repeater", "/api/chat", "upstream_truncated", "repeat_limit", True),
    ],
)
def test_an_end_is_told_with_what_the_connection_knows(
    make_sim: Callable[..., Any],
    serving: Callable[..., Servant],
    model: str,
    path: str,
    ending: str,
    cause: str,
    clean: bool | None,
) -> None:
    proxy = serving(make_sim(personas=[model], speed=20.0).url)
    send(proxy, path, model, **({"input": "go on"} if path == "/v1/responses" else {"max_tokens": 400}))
    row = ended(proxy)
    assert row["ending"] == ending
    [finding] = [f for f in row["findings"] if f["kind"] == "upstream.aborted"]
    assert (finding["evidence"]["cause"], finding["evidence"].get("clean")) == (cause, clean)
    if path in ("/v1/responses", "/v1/messages") and cause == "unknown":
        assert "swallows errors" in finding["summary"]


def test_whole_answers_and_clients_that_leave_are_no_findings(
    make_sim: Callable[..., Any], serving: Callable[..., Servant]
) -> None:
    proxy = serving(make_sim(personas=["steady"], speed=20.0).url)
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        assert send(proxy, path, "steady", max_tokens=20)
    url = urlsplit(proxy.proxy)
    with socket.create_connection((url.hostname, url.port)) as leaver:
        body = json.dumps(ASK | {"model": "steady", "options": {"num_predict": 4000}}).encode()
        leaver.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert leaver.recv(65536)
    rows: list[dict[str, Any]] = []
    while len(rows) < 4:
        rows = [row for row in proxy.ask("/api/v1/exchanges")["items"] if row["ending"]]
    assert sorted(row["ending"] for row in rows) == ["client_disconnect", "complete", "complete", "complete"]
    assert proxy.ask("/api/v1/findings")["items"] == []


class Upstream:
    """Answers one request with what a script writes to its socket."""

    def __init__(self, script: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, args=(script,), daemon=True)
        self._thread.start()

    def _run(self, script: Callable[[socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with peer:
                    asked = b""
                    while b"\r\n\r\n" not in asked and (got := peer.recv(65536)):
                        asked += got
                    if asked.startswith(b"POST"):
                        with contextlib.suppress(OSError):
                            script(peer)
                    else:
                        peer.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{"models":[]}')

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def upstream() -> Iterator[Callable[[Callable[[socket.socket], None]], Upstream]]:
    made: list[Upstream] = []

    def make(script: Callable[[socket.socket], None]) -> Upstream:
        made.append(Upstream(script))
        return made[-1]

    yield make
    for one in made:
        one.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_LETTERS = str.maketrans("0123456789", "ghiklmnopq")
LAST = b"0\r\n\r\n"


def record(text: str = "", *, padding: int = 0, done: bool = False) -> bytes:
    """A native record as a chunk; the padding is a field that nobody reads."""
    line: dict[str, Any] = {
        "model": "m",
        "message": {"role": "assistant", "content": text},
        "done": done,
        "padding": "x" * padding,
    }
    if done:
        line |= {"done_reason": "stop", "prompt_eval_count": 5, "eval_count": 60}
    data = json.dumps(line).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def word(n: int) -> str:
    """Text that does not repeat itself."""
    return sha256(b"%d" % n).hexdigest()[: 2 + n % 7].translate(_LETTERS) + " "


def paced(peer: socket.socket, n: int) -> None:
    """So many chunks at a model's pace, which nothing else sets."""
    peer.sendall(HEAD)
    clock = threading.Event()
    for i in range(n):
        peer.sendall(record(word(i)))
        clock.wait(0.005)


def ask_raw(proxy: Servant, client: socket.socket) -> None:
    url = urlsplit(proxy.proxy)
    client.connect((url.hostname, url.port))
    body = json.dumps(ASK | {"model": "m"}).encode()
    client.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def test_a_client_that_stops_reading_is_named(upstream: Callable[..., Upstream], serving: Callable[..., Servant]) -> None:
    stuck = threading.Event()

    def script(peer: socket.socket) -> None:
        paced(peer, 40)
        peer.setblocking(False)
        rest, n = b"", 40
        while select.select([], [peer], [], 0.5)[1]:  # till nobody takes any more, and that for half a second
            rest = rest or record(word(n := n + 1), padding=200_000)
            rest = rest[peer.send(rest) :]
        stuck.set()
        peer.setblocking(True)
        peer.sendall(rest + record("and ") + record("so on") + record(done=True) + LAST)

    proxy = serving(upstream(script).url, poll=0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask_raw(proxy, client)
        assert stuck.wait(PATIENCE_S)
        tail = b""
        while not tail.endswith(LAST):
            got = client.recv(1 << 20)
            assert got
            tail = (tail + got)[-64:]
    row = ended(proxy)
    assert row["ending"] == "complete"
    assert [f["kind"] for f in row["findings"]] == ["stall"]
    evidence = row["findings"][0]["evidence"]
    assert (evidence["cause"], evidence["side"]) == ("slow_client", "client")
    assert evidence["client_slow_s"] <= evidence["gap_s"]
    assert "the client did not take" in row["findings"][0]["summary"]


def test_a_server_that_closes_without_an_answer(upstream: Callable[..., Upstream], serving: Callable[..., Servant]) -> None:
    proxy = serving(upstream(lambda peer: None).url, poll=0)
    assert send(proxy, "/api/chat", "m") == b""
    row = ended(proxy)
    assert row["ending"] == "upstream_truncated"
    assert [f["evidence"]["cause"] for f in row["findings"]] == ["connection_lost"]


def test_a_client_that_half_closes_and_reads_on(upstream: Callable[..., Upstream], serving: Callable[..., Servant]) -> None:
    """Told only when it is certain: a quarter of a second after its FIN it still takes what comes."""

    def script(peer: socket.socket) -> None:
        paced(peer, 120)
        peer.sendall(LAST)

    proxy = serving(upstream(script).url, poll=0)
    with socket.socket() as client:
        ask_raw(proxy, client)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    row = ended(proxy)
    assert row["ending"] == "client_disconnect"
    assert [f["evidence"]["cause"] for f in row["findings"]] == ["client_half_close"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_stream_that_goes_silent(upstream: Callable[..., Upstream], serving: Callable[..., Servant]) -> None:
    over = threading.Event()

    def script(peer: socket.socket) -> None:
        paced(peer, 40)
        over.wait(100)
        peer.sendall(record(done=True) + LAST)

    proxy = serving(upstream(script).url, poll=0)
    with socket.socket() as client:
        ask_raw(proxy, client)
        client.settimeout(0.5)
        found: list[dict[str, Any]] = []
        while not found:  # while the stream is open
            with contextlib.suppress(TimeoutError):
                assert client.recv(65536)
            found = proxy.ask("/api/v1/findings")["items"]
        over.set()
    assert [f["kind"] for f in found] == ["stream.silent"]
    assert found[0]["evidence"]["silent_s"] >= 30
