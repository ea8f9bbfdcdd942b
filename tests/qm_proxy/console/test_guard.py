"""The console answers only to its own names, its own page and its own token."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from qm_proxy.console.guard import Guard, names_of


async def _hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def client(token: str | None = None) -> TestClient:
    app = Starlette(routes=[Route(path, _hello) for path in ("/", "/healthz", "/page/main.js", "/api/v1/status")])
    guarded = Guard(app, names_of([("127.0.0.1", 11437)], ["box.local:11437"]), token)
    return TestClient(guarded, base_url="http://127.0.0.1:11437")


@pytest.mark.parametrize("host", ["127.0.0.1:11437", "localhost:11437", "LOCALHOST:11437", "[::1]:11437", "box.local:11437"])
def test_own_names_pass(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:80", "localhost:11437.evil.example", ""])
def test_other_names_are_refused(host: str) -> None:
    answer = client().get("/", headers={"host": host})
    assert answer.status_code == 421
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail"}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:11437", 200),
        ("http://localhost:11437", 200),
        ("http://localhost:3000", 403),
        ("null", 403),
        ("https://evil.example", 403),
    ],
)
def test_origin(origin: str, status: int) -> None:
    assert client().get("/", headers={"origin": origin}).status_code == status


def test_token() -> None:
    asking = client("s3cret;=é")
    status = "/api/v1/status"
    assert asking.get(status).status_code == 401
    assert asking.get(status, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert asking.get(status, headers=[(b"authorization", "bearer s3cret;=é".encode())]).status_code == 200
    assert asking.get(status, headers={"cookie": "a=b; qm_token=s3cret%3B%3D%C3%A9"}).status_code == 200
    assert asking.get(status, headers={"cookie": "qm_token="}).status_code == 401


@pytest.mark.parametrize("path", ["/", "/healthz", "/page/main.js"])
def test_what_holds_nobodys_data_needs_no_token(path: str) -> None:
    assert client("s3cret").get(path).status_code == 200


@pytest.mark.parametrize("path", ["/page", "/page/../api/v1/status", "/healthz/"])
def test_no_way_round_the_token(path: str) -> None:
    assert client("s3cret").get(path).status_code in (401, 404)


def test_two_hosts_are_refused() -> None:
    answer = client().get("/", headers=[("host", "127.0.0.1:11437"), ("host", "evil.example")])
    assert answer.status_code in (400, 421)


async def _judged(guard: Guard, host: str, server: tuple[str, int] | None, origin: str | None = None) -> int:
    """The status for one request on a connection whose own end is `server`."""
    told: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            told.append(message["status"])

    headers = [(b"host", host.encode())] + ([] if origin is None else [(b"origin", origin.encode())])
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/healthz",
        "raw_path": b"/healthz",
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await guard(scope | {"server": server, "client": None, "scheme": "http"}, receive, send)
    return told[0]


@pytest.mark.parametrize(
    ("listens", "host", "server", "status"),
    [
        ("0.0.0.0", "192.168.1.5:11437", ("192.168.1.5", 11437), 200),
        ("::", "192.168.1.5:11437", ("::ffff:192.168.1.5", 11437), 200),
        ("::", "[fd00::5]:11437", ("fd00::5", 11437), 200),
        ("0.0.0.0", f"{socket.gethostname()}:11437", ("192.168.1.5", 11437), 200),
        ("0.0.0.0", "192.168.1.6:11437", ("192.168.1.5", 11437), 421),
        ("0.0.0.0", "evil.example:11437", ("192.168.1.5", 11437), 421),
        ("0.0.0.0", "evil.example:11437", ("evil.example", 11437), 421),
        ("0.0.0.0", "192.168.1.5:11437", None, 421),
        ("127.0.0.1", "192.168.1.5:11437", ("192.168.1.5", 11437), 421),
    ],
)
async def test_listening_everywhere_it_answers_to_the_address_connected_to(
    listens: str, host: str, server: tuple[str, int] | None, status: int
) -> None:
    guard = Guard(Starlette(routes=[Route("/healthz", _hello)]), names_of([(listens, 11437)]))
    assert await _judged(guard, host, server) == status
    if status == 200:
        assert await _judged(guard, host, server, f"http://{host}") == 200
        assert await _judged(guard, host, server, "http://evil.example") == 403
