"""Host, Origin, OPTIONS, redirects: as observed on a real server bound to loopback."""

from __future__ import annotations

import asyncio

import pytest

from probes.sim.doors import host_allowed
from tests.probes.sim.conftest import Answer, Running, ask


@pytest.mark.parametrize(
    ("host", "verdict"),
    [
        ("localhost:9999", "name"),
        ("127.0.0.1", "ip"),
        ("foo.local", "name"),
        ("my.internal", "name"),
        ("192.168.1.5:11435", "ip"),
        ("", "name"),
        (None, "name"),
        ("a.localhost", "name"),
        ("[::1]:11434", "ip"),
        ("10.0.0.1", "ip"),
        ("0.0.0.0", "ip"),
        ("evil.example.com", "no"),
        ("8.8.8.8", "no"),
        ("localhost.evil.com:80", "no"),
    ],
)
def test_hosts(host: str | None, verdict: str) -> None:
    assert host_allowed(host) == verdict


def fetch(running: Running, method: str, path: str, *headers: str, host: str = "127.0.0.1:11434") -> Answer:
    async def main() -> Answer:
        async with running("steady") as sim:
            lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
            return await ask(sim, ("\r\n".join(lines) + "\r\n\r\n").encode())

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("http://0.0.0.0:1", 200),
        ("app://x", 200),
        ("file://", 200),
        ("tauri://localhost", 200),
        ("vscode-webview://abc", 200),
        ("null", 403),
        ("http://evil.com", 403),
        ("http://192.168.1.5", 403),
        ("chrome-extension://abc", 403),
        ("moz-extension://abc", 403),
    ],
)
def test_origins(origin: str, status: int, running: Running) -> None:
    answer = fetch(running, "GET", "/api/version", f"Origin: {origin}")
    assert answer.status == status
    if status == 200:
        assert answer.header("Access-Control-Allow-Origin") == origin
        assert answer.header("Vary") == "Origin"
    else:
        assert answer.body == b""
        assert answer.header("Content-Type") is None


def test_the_same_origin_needs_no_permission(running: Running) -> None:
    answer = fetch(running, "GET", "/api/version", "Origin: http://192.168.1.5:11435", host="192.168.1.5:11435")
    assert answer.status == 200
    assert answer.header("Access-Control-Allow-Origin") is None


def test_a_foreign_host_is_refused_without_a_word(running: Running) -> None:
    answer = fetch(running, "GET", "/api/version", host="evil.example.com")
    assert (answer.status, answer.body, answer.header("Content-Type")) == (403, b"", None)


def test_preflight(running: Running) -> None:
    answer = fetch(running, "OPTIONS", "/api/chat", "Origin: http://localhost", "Access-Control-Request-Headers: x-api-key")
    assert answer.status == 204
    assert answer.header("Access-Control-Max-Age") == "43200"
    allowed = (answer.header("Access-Control-Allow-Headers") or "").lower()
    assert "authorization" in allowed
    assert "x-api-key" not in allowed
    assert "anthropic-version" not in allowed
    assert answer.header("Content-Length") is None
    assert fetch(running, "OPTIONS", "/api/chat", "Origin: http://evil.com").status == 403


def test_options_without_origin_depends_on_the_hosts_spelling(running: Running) -> None:
    by_address = fetch(running, "OPTIONS", "/api/chat")
    assert (by_address.status, by_address.header("Allow")) == (405, "POST")
    by_name = fetch(running, "OPTIONS", "/api/chat", host="localhost")
    assert (by_name.status, by_name.header("Access-Control-Allow-Origin")) == (204, None)


@pytest.mark.parametrize(
    ("method", "target", "status", "location"),
    [
        ("GET", "/api/tags/", 301, "/api/tags"),
        ("POST", "/api/chat/?a=1", 307, "/api/chat?a=1"),
        ("GET", "//api/tags", 301, "/api/tags"),
        ("GET", "/api/../api/tags", 301, "/api/tags"),
        ("GET", "/nope/", 404, None),
        ("GET", "/metrics", 404, None),
        ("POST", "/v1/messages/count_tokens", 404, None),
        ("POST", "/v1/images/generations", 404, None),
        ("POST", "/api/tags", 405, None),
        ("GET", "/api/chat", 405, None),
    ],
)
def test_where_there_is_no_handler(method: str, target: str, status: int, location: str | None, running: Running) -> None:
    answer = fetch(running, method, target)
    assert (answer.status, answer.header("Location")) == (status, location)
    if status == 301:
        assert answer.body == f'<a href="{location}">Moved Permanently</a>.\n\n'.encode()
    if status in (404, 405):
        assert answer.header("Content-Type") == "text/plain"
        assert answer.body in (b"404 page not found", b"405 method not allowed")
