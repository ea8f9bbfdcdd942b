"""`serve` as a user runs it: ready line, observation, restarts, hand-over and a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.errors import QmError, SettingsError
from qm_proxy.servant import Servant

Serve = Callable[..., Servant]
CHAT = {"model": "steady", "messages": [{"role": "user", "content": "count to twenty"}], "options": {"num_predict": 40}}


def post(url: str, path: str, body: dict[str, Any], agent: str = "test/1") -> bytes:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json", "User-Agent": agent}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def eventually(ask: Callable[[], Any], patience_s: float = 10.0) -> Any:
    """The first true answer of `ask`; fails when none comes."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            if found := ask():
                return found
        except QmError:
            pass
        time.sleep(0.02)
    pytest.fail("it never came")


def closed(proxy: Servant, n: int = 1) -> list[dict[str, Any]]:
    def rows() -> list[dict[str, Any]] | None:
        items: list[dict[str, Any]] = [row for row in proxy.ask("/api/v1/exchanges")["items"] if row["ending"]]
        return items if len(items) >= n else None

    found: list[dict[str, Any]] = eventually(rows)
    return found


def observers(proxy: Servant) -> list[int]:
    children = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children").read_text().split()
    return [int(c) for c in children if "qm_proxy.wiring" in Path(f"/proc/{c}/cmdline").read_text()]


def test_an_exchange_is_passed_on_and_measured(sim: Any, serving: Serve) -> None:
    proxy = serving(sim.url)
    through = post(proxy.proxy, "/api/chat", CHAT)
    (row,) = closed(proxy)
    truth = sim.sim.truth[0]
    assert json.loads(through.splitlines()[-1])["done"] is True
    assert row["dialect"] == "ollama"
    assert row["operation"] == "chat"
    assert row["model"] == "steady"
    assert row["ending"] == "complete"
    assert row["output_tokens"] == truth.sampled_tokens
    assert row["input_tokens"] == truth.prompt_tokens
    assert row["client"] == "unknown"
    chunks = proxy.ask(f"/api/v1/exchanges/{row['id']}/chunks")
    assert len(chunks["arrival_ns"]) == row["chunks"]
    assert chunks["format"] == 1
    assert proxy.ask(f"/api/v1/exchanges/{row['id']}")["id"] == row["id"]


def test_console_errors_are_problem_documents(sim: Any, serving: Serve) -> None:
    proxy = serving(sim.url)
    for path, said in [
        ("/api/v1/exchanges/none", "No exchange"),
        ("/api/v1/exchanges?limit=9999", "limit"),
        ("/api/v1/exchanges?colour=red", "Unknown parameter"),
        ("/api/v1/exchanges?cursor=x", "cursor"),
        ("/nowhere", "Not Found"),
    ]:
        with pytest.raises(QmError, match=said):
            proxy.ask(path)
    assert proxy.ask("/healthz")["name"] == "qm-proxy"
    status = proxy.ask("/api/v1/status")
    assert status["upstream"] == sim.url
    assert status["observer"]["restarts"] == 0


def test_metrics_page_counts_the_exchange(sim: Any, serving: Serve) -> None:
    proxy = serving(sim.url)
    post(proxy.proxy, "/api/chat", CHAT)
    closed(proxy)
    with urllib.request.urlopen(f"{proxy.console}/metrics") as answer:
        text = answer.read().decode()
    assert (
        'qm_exchanges_total{gen_ai_request_model="steady",qm_client="unknown",qm_ending="complete",qm_origin="client"} 1.0'
        in text
    )


def test_unreachable_upstream_is_a_warning_and_a_502(serving: Serve) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = serving(f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(urllib.error.HTTPError) as failure:
            post(proxy.proxy, "/v1/chat/completions", CHAT)
        with failure.value:
            assert failure.value.code == 502
            assert "cannot reach" in json.loads(failure.value.read())["error"]["message"]
        (row,) = closed(proxy)
        assert row["ending"] == "upstream_unreachable"


def test_upstream_that_is_the_proxy_is_refused(serving: Serve) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(SettingsError, match="this proxy itself"):
        serving(f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}")


def test_port_in_use_is_said(sim: Any, serving: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match=str(taken.getsockname()[1])):
            serving(sim.url, listen=f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_console_beyond_loopback_needs_a_token(sim: Any, serving: Serve) -> None:
    with pytest.raises(SettingsError, match="token"):
        serving(sim.url, console="0.0.0.0:0")


def stream(proxy: Servant, tokens: int) -> socket.socket:
    """Begin a streamed answer over a raw socket; return when its first bytes are there."""
    host, _, port = proxy.proxy.removeprefix("http://").rpartition(":")
    body = json.dumps(CHAT | {"options": {"num_predict": tokens, "num_ctx": 4096}}).encode()
    sock = socket.create_connection((host, int(port)))
    sock.settimeout(30)
    sock.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert sock.recv(1, socket.MSG_PEEK)
    return sock


def rest(sock: socket.socket) -> bytes:
    """All bytes to the end of the chunked body."""
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        got = sock.recv(65536)
        if not got:
            break
        data += got
    return data


def test_kill_the_observer_and_nobody_notices(make_sim: Any, serving: Serve) -> None:
    sim = make_sim(personas=["steady"], speed=2.0)
    proxy = serving(sim.url)
    sock = stream(proxy, 150)
    (first,) = observers(proxy)
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: [p for p in observers(proxy) if p != first])
    os.kill(second[0], signal.SIGKILL)
    data = rest(sock)
    assert data.count(b'"done":false') == 150 or data.count(b'"done":true') == 1
    status = eventually(lambda: proxy.ask("/api/v1/status"))
    assert status["observer"]["restarts"] == 2
    post(proxy.proxy, "/api/chat", CHAT)
    assert eventually(lambda: closed(proxy))
    sock.close()


def test_stop_lets_streams_end_and_idle_connections_go(make_sim: Any, serving: Serve) -> None:
    sim = make_sim(personas=["steady"], speed=2.0)
    proxy = serving(sim.url, grace=20.0)
    host, _, port = proxy.proxy.removeprefix("http://").rpartition(":")
    idle = socket.create_connection((host, int(port)))
    idle.sendall(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.recv(4096)
    sock = stream(proxy, 100)
    proxy.process.send_signal(signal.SIGTERM)
    idle.settimeout(10)
    assert idle.recv(4096) == b""
    assert rest(sock).endswith(b"0\r\n\r\n")
    sock.close()
    assert proxy.process.wait(20) == 0
    idle.close()


def test_hang_up_hands_the_port_over(make_sim: Any, serving: Serve) -> None:
    sim = make_sim(personas=["steady"], speed=2.0)
    proxy = serving(sim.url)
    sock = stream(proxy, 120)
    proxy.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(proxy.ask("/api/v1/status")["relays"]) == 2)
    post(proxy.proxy, "/api/chat", CHAT | {"options": {"num_predict": 3}})
    assert rest(sock).endswith(b"0\r\n\r\n")
    sock.close()
    assert len(closed(proxy, 2)) == 2
    eventually(lambda: len(proxy.ask("/api/v1/status")["relays"]) == 1)


def test_ready_line_is_one_line_and_off_is_said(sim: Any, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "qm_proxy",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            sim.url,
            "--console",
            "off",
            "--db",
            "off",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert line.startswith("qm-proxy ready: proxy http://127.0.0.1:")
    assert line.endswith(f"-> {sim.url}, console off\n")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"Traceback" not in err
