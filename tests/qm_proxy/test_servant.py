from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qm_proxy.cli import plan_of
from qm_proxy.errors import QmError, SettingsError, UpstreamError
from qm_proxy.servant import READY, Servant, ask
from qm_proxy.settings import load


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that answers one connection with these bytes; its URL."""
    threads: list[threading.Thread] = []

    def start(reply: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def once() -> None:
            with listener:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        threads.append(threading.Thread(target=once, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(10)


def _http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status.encode(), len(body), body)


def test_ask_reads_json(answering: Callable[[bytes], str]) -> None:
    assert ask(answering(_http("200 OK", b'{"items": [1]}')), "/api/v1/x") == {"items": [1]}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (_http("404 Not Found", b'{"detail": "There is no such exchange."}'), "There is no such exchange"),
        (_http("500 Oops", b"<html>"), "HTTP 500"),
        (_http("500 Oops", b"[1]"), "HTTP 500"),
        (_http("200 OK", b"<html>"), "does not answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "does not answer"),
        (b"", "does not answer"),
    ],
)
def test_ask_says_in_words_what_went_wrong(answering: Callable[[bytes], str], reply: bytes, words: str) -> None:
    with pytest.raises(QmError, match=words):
        ask(answering(reply), "/api/v1/x")


def test_ask_of_nobody() -> None:
    with pytest.raises(QmError, match="does not answer"):
        ask("http://127.0.0.1:1", "/", patience_s=1)


def _plan(**changes: Any) -> dict[str, Any]:
    flags = {"listen": "127.0.0.1:0", "console": "off", "db": "off", "upstream": "http://127.0.0.1:1"} | changes
    return plan_of(load(flags), quiet=True)


def test_a_taken_port_is_the_settings_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingsError) as refused:
        Servant(_plan(listen=f"127.0.0.1:{taken.getsockname()[1]}"))
    assert "already listens" in str(refused.value)
    assert not str(refused.value).startswith("qm-proxy")
    assert refused.value.exit_code == 2


def test_a_plan_that_cannot_be_followed_is_no_hang() -> None:
    with pytest.raises(UpstreamError, match=r"KeyError|did not get ready"):
        Servant({"listen": "127.0.0.1:0"})


def test_without_a_console_it_serves_and_cannot_be_asked() -> None:
    with Servant(_plan()) as servant:
        assert servant.proxy.startswith("http://127.0.0.1:")
        assert servant.console is None
        with pytest.raises(QmError, match="console is off"):
            servant.ask("/api/v1/status")
        assert servant.close() == 0
        assert servant.close() == 0  # again: nothing left to do


def test_the_ready_line() -> None:
    found = READY.match("qm-proxy ready: proxy http://127.0.0.1:1 -> http://127.0.0.1:2, console off")
    assert found is not None
    assert found.groupdict() == {"proxy": "http://127.0.0.1:1", "upstream": "http://127.0.0.1:2", "console": "off"}
    assert READY.match("qm-proxy: ready") is None
