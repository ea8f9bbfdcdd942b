"""The console as an attacker finds it: what a page on another site, a rebound name or a stranger without the token can send."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from mcp import Client

from qm_proxy.console.openapi import PATHS
from qm_proxy.servant import Servant

ID = "01a20dda-90c6-750d-b858-396c94102bdc"
ROUTES = sorted(
    {path.replace("{id}", ID) for _, path in PATHS}
    | {"/", "/page/main.js", "/page/vega.js", "/healthz", "/metrics", "/mcp", "/api/v1/clients", "/nothing/here"}
)
TOKEN = "correct horse; battery=staple"


class Answer(NamedTuple):
    status: int
    head: str
    body: bytes


def send(url: str, raw: bytes) -> Answer:
    """Raw bytes to the console; its answer, whole or to the end of the connection."""
    where = urlsplit(url)
    assert where.port is not None
    with socket.create_connection((where.hostname or "", where.port), timeout=30) as sock:
        sock.settimeout(30)
        read = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has said what it had to say, and closed
            sock.sendall(raw)
        with contextlib.suppress(ConnectionResetError):
            while not _whole(read) and (data := sock.recv(65536)):
                read += data
    head, _, body = read.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), read[:100]
    return Answer(int(head[9:12]), head.decode("latin-1").lower(), body)


def _whole(read: bytes) -> bool:
    head, end, body = read.partition(b"\r\n\r\n")
    if not end:
        return False
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    return (length is not None and len(body) >= length) or (b"text/event-stream" in head.lower() and bool(body))


def ask(served: Servant, target: str = "/api/v1/status", method: str = "GET", body: bytes = b"", **headers: str | None) -> Answer:
    """A request that is right but for what is said; a header of None is left out, `_` in names is `-`."""
    assert served.console is not None
    own = urlsplit(served.console).netloc
    given: dict[str, str | None] = {"Host": own, "Connection": "close", "Accept": "application/json, text/event-stream"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    if body:
        given |= {"Content-Type": given.get("Content-Type") or "application/json", "Content-Length": str(len(body))}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return send(served.console, "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


@pytest.fixture
def served(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> Servant:
    return serving(make_sim(personas=["steady"], speed=20.0).url)


def _hosts(served: Servant) -> Iterable[str]:
    assert served.console is not None
    port = urlsplit(served.console).port
    yield from (
        f"evil.example:{port}",
        "evil.example",
        f"127.0.0.1:{port}.evil.example",
        f"localhost.evil.example:{port}",
        "127.0.0.1",
    )
    yield from (
        f"127.0.0.1:{(port or 0) + 1}",
        f"127.0.0.1:{port}@evil.example",
        f"127.1:{port}",
        f"0.0.0.0:{port}",
        f"2130706433:{port}",
    )


def test_no_route_answers_to_another_name(served: Servant) -> None:
    """DNS rebinding: the browser believes the page's own name, and the console does not."""
    asked = 0
    for host in _hosts(served):
        for route in ROUTES:
            for method in ("GET", "POST"):
                answer = ask(served, route, method, b"{}" if method == "POST" else b"", Host=host)
                assert answer.status == 421, (host, route, method, answer.head)
                asked += 1
        for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"):
            assert ask(served, "/api/v1/runs", method, Host=host).status == 421
    assert ask(served, "/healthz").status == 200
    print(f"{asked} requests under other names refused")


def test_no_route_answers_to_a_foreign_page(served: Servant) -> None:
    assert served.console is not None
    own = urlsplit(served.console)
    origins = [
        "null",
        "https://evil.example",
        "http://localhost:3000",
        f"{served.console}.evil.example",
        f"http://evil@{own.netloc}",
    ]
    origins += [f"http://127.0.0.1:{(own.port or 0) + 1}", "file://", "chrome-extension://abc", f"{served.console}/", ""]
    for origin in origins:
        for route in ROUTES:
            answer = ask(served, route, Origin=origin)
            assert answer.status == 403, (origin, route, answer.head)
        for method, body in (("POST", b'{"kind":"inspect","model":"steady"}'), ("OPTIONS", b""), ("HEAD", b""), ("DELETE", b"")):
            answer = ask(served, "/api/v1/runs", method, body, Origin=origin)
            assert answer.status == 403
    assert served.ask("/api/v1/runs")["items"] == []
    assert ask(served, Origin=served.console).status == 200


def test_nothing_is_shared_across_origins(served: Servant) -> None:
    for route in ROUTES:
        if route == "/api/v1/events":
            continue
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = ask(served, route, method, Access_Control_Request_Method="POST")
            assert "access-control-" not in answer.head, (route, method)


def test_two_names_are_refused(served: Servant) -> None:
    assert served.console is not None
    own = urlsplit(served.console).netloc
    for first, second in ((own, "evil.example"), ("evil.example", own), (own, own)):
        raw = f"GET /api/v1/status HTTP/1.1\r\nHost: {first}\r\nHost: {second}\r\nConnection: close\r\n\r\n"
        assert send(served.console, raw.encode()).status in (400, 421)
    assert send(served.console, b"GET /api/v1/status HTTP/1.0\r\n\r\n").status in (400, 421)
    assert ask(served, X_Forwarded_Host="evil.example").status == 200, "and nothing of a proxy's is believed"
    assert ask(served, Host="evil.example", X_Forwarded_Host=own, Forwarded=f"host={own}").status == 421


def test_no_upgrade(served: Servant) -> None:
    """Neither websockets nor HTTP/2 in clear: each is a way past the header checks elsewhere."""
    key: dict[str, Any] = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "13"}
    for route in ("/", "/mcp", "/api/v1/events", "/ws", "/api/v1/status"):
        answer = ask(served, route, Connection="Upgrade", Upgrade="websocket", **key, Origin="https://evil.example")
        assert answer.status in (400, 403), (route, answer.head)
        if route != "/api/v1/events":
            assert ask(served, route, Connection="Upgrade, close", Upgrade="websocket", **key).status != 101
    assert (
        ask(served, Connection="Upgrade, HTTP2-Settings, close", Upgrade="h2c", HTTP2_Settings="AAMAAABkAAQAAP__").status == 200
    )
    assert served.console is not None


PATHS_TRIED = [
    "/api/v1/status", "//api/v1/status", "/page/../api/v1/status", "/page/%2e%2e/api/v1/status", "/page/..%2fapi/v1/status",
    "/page/./../api/v1/status", "/healthz/../api/v1/status", "/%61pi/v1/status", "/api/v1/status?/page/", "/api/v1/status#/page/",
    "/API/v1/status", "/page/%00/../api/v1/status", "/page\\..\\api/v1/status", "/api/v1/exchanges", "/metrics", "/mcp",
    "/api/v1/status;/page/", "/api/v1/events?after=0", "/api/v1/clients", "/api/v1/openapi.json", "http://127.0.0.1/api/v1/status",
    "/page/../../../../etc/passwd", "/page/%2e%2e/%2e%2e/pyproject.toml", "/page/..%2f..%2fguard.py", "/page//etc/passwd",
    "/api/v1/runs/../status", "*",
]  # fmt: skip


def test_nothing_leads_round_the_token(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> None:
    served = serving(make_sim(personas=["steady"]).url, console_token=TOKEN)
    for target in PATHS_TRIED:
        for method in ("GET", "POST"):
            answer = ask(served, target, method, b"{}" if method == "POST" else b"")
            assert answer.status in (400, 401, 404, 405), (target, method, answer.head)
            for secret in (b"uptime_s", b"root:", b"hmac", b"[project]", b"qm_exchanges"):
                assert secret not in answer.body, target
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
        assert ask(served, "/api/v1/status", method).status == 401
    wrong = ["Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN.upper()}"]
    for authorization in wrong:
        answer = ask(served, Authorization=authorization)
        assert answer.status == 401, authorization
        assert "www-authenticate: bearer" in answer.head
    for cookie in ("qm_token=", f"qm_token={TOKEN[:-1]}", "qm_token=%", f"token={TOKEN}", "qm_token"):
        assert ask(served, Cookie=cookie).status == 401, cookie
    assert ask(served, f"/api/v1/status?token={TOKEN.replace(' ', '+')}&console_token=x").status == 401
    assert ask(served, Authorization=f"Bearer {TOKEN}").status == 200
    assert ask(served, Authorization=f"Bearer {TOKEN}", Host="evil.example").status == 421, "a token is no way round the names"
    assert ask(served, Authorization=f"Bearer {TOKEN}", Origin="https://evil.example").status == 403
    assert TOKEN.encode() not in ask(served, Authorization=f"Bearer {TOKEN}").body


def test_bodies_and_heads_beyond_all_measure(served: Servant) -> None:
    """Refused before they are kept; the console lives on."""
    assert served.console is not None
    large = b"x" * 2**21
    assert ask(served, "/api/v1/runs", "POST", b'{"kind":"' + large).status == 413
    assert ask(served, "/mcp", "POST", b'{"jsonrpc":"2.0","id":1,"method":"' + large + b'"}').status == 413
    own = urlsplit(served.console).netloc
    head = f"POST /api/v1/runs HTTP/1.1\r\nHost: {own}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (
        send(served.console, head.encode() + b"10000\r\n" + b"y" * 0x10000 + b"\r\n10000\r\n" + b"y" * 0x10000 + b"\r\n").status
        == 413
    )
    assert ask(served, X_Long="z" * 2**18).status in (400, 431)
    assert ask(served, "/" + "a" * 2**17).status in (400, 404, 414)
    assert send(served.console, b"\x16\x03\x01\x02\x00garbage\r\n\r\n").status == 400
    for body in (b"[" * 20_000, b'{"kind":"inspect","model":{"a":1}}', b'{"kind":"inspect","model":"../../x"}', b"\xff\xfe"):
        assert ask(served, "/api/v1/runs", "POST", body).status in (400, 409), body[:40]
    form = ask(served, "/api/v1/runs", "POST", b'{"kind":"inspect","model":"steady"}', Content_Type="text/plain")
    assert form.status == 415, "what a form on any page can send without asking"
    for query in ("limit=0", "limit=-1", "limit=99999", "limit=1e9", "cursor=' or 1=1 --", "since=now", "nope=1", "session=%00"):
        assert ask(served, f"/api/v1/exchanges?{query.replace(' ', '%20')}").status in (200, 400), query
    assert ask(served, "/api/v1/runs/..%2f..%2fetc%2fpasswd/report").status == 404
    assert ask(served).status == 200
    assert served.ask("/api/v1/runs")["items"] == []


async def test_read_only_starts_and_ends_nothing(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> None:
    served = serving(make_sim(personas=["steady"], speed=20.0).url, read_only=True)
    answer = ask(served, "/api/v1/runs", "POST", b'{"kind":"inspect","model":"steady"}')
    assert answer.status == 409
    assert "read-only" in json.loads(answer.body)["detail"]
    assert ask(served, "/api/v1/runs/inspect-1", "DELETE").status == 404
    assert served.ask("/api/v1/status")["read_only"] is True
    async with Client(f"{served.console}/mcp") as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert not names & {"inspect_model", "audit_context", "report_agent", "cancel_run"}
        assert {"get_status", "explain_exchange", "compare_runs", "get_run", "list_runs"} <= names
        assert (await client.call_tool("inspect_model", {"model": "steady"})).is_error
    assert served.ask("/api/v1/runs")["items"] == []


@pytest.mark.parametrize("console", ["0.0.0.0:0", "[::]:0", ":0"])
def test_beyond_loopback_it_wants_a_token(console: str, tmp_path: Path) -> None:
    words = ["--listen", "127.0.0.1:0", "--console", console, "--upstream", "http://127.0.0.1:1", "--db", str(tmp_path / "qm.db")]
    done = subprocess.run(
        [sys.executable, "-m", "qm_proxy", "serve", *words], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert "--console-token" in done.stderr
    assert not done.stdout


def test_beyond_loopback_with_a_token_it_answers_to_what_was_connected_to(
    make_sim: Callable[..., Any], serving: Callable[..., Servant]
) -> None:
    served = serving(make_sim(personas=["steady"]).url, console="0.0.0.0:0", console_token=TOKEN)
    assert served.console is not None
    port = urlsplit(served.console).port
    url = f"http://127.0.0.2:{port}"  # another address of this machine
    for host, status in ((f"127.0.0.2:{port}", 200), (f"evil.example:{port}", 421), (f"127.0.0.3:{port}", 421)):
        raw = f"GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        assert send(url, raw.encode()).status == status
    assert send(url, f"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.2:{port}\r\nConnection: close\r\n\r\n".encode()).status == 401
