"""Who may speak to the console: exact Host and Origin lists, and a bearer token where one is set.

A page on any website can send requests to 127.0.0.1; what stops it is that its Host (DNS rebinding) or its Origin is not one
of ours. A console that listens on every address also answers to the address that was connected to, and to this machine's name:
rebinding needs a name of the attacker's. Errors are RFC 9457 problem documents, as everywhere on the console.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard", "names_of", "problem"]

_EVERYWHERE = ("0.0.0.0", "::")


def names_of(addresses: Iterable[tuple[str, int]], extra: Iterable[str] = ()) -> frozenset[str]:
    """Every `host:port` by which these listening addresses may be called, lower case; port 80 also without its number."""
    names: set[str] = {name.lower() for name in extra}
    for host, port in addresses:
        hosts = {f"[{host}]" if ":" in host else host}
        if host in ("127.0.0.1", "::1", *_EVERYWHERE):
            hosts |= {"localhost", "127.0.0.1", "[::1]"}
        if host in _EVERYWHERE:
            own = socket.gethostname()
            hosts |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        names |= {f"{h}:{port}" for h in hosts}
        if port == 80:
            names |= hosts
    return frozenset(name.lower() for name in names)


def problem(status: int, title: str, detail: str, *, kind: str = "about:blank") -> tuple[int, bytes]:
    """(status, body) of a problem document."""
    return status, json.dumps({"type": kind, "title": title, "status": status, "detail": detail}).encode()


class Guard:
    """ASGI middleware around everything on the console port."""

    def __init__(self, app: ASGIApp, names: frozenset[str], token: str | None = None) -> None:
        self.app = app
        self.names = names
        self.everywhere = any(name.startswith(("0.0.0.0:", "[::]:")) for name in names)
        self.token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._judge(scope)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, body, extra = refusal
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode()), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _judge(self, scope: Scope) -> tuple[int, bytes, list[tuple[bytes, bytes]]] | None:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"origin", b"authorization", b"cookie") and name in headers and name != b"cookie":
                return *problem(400, "Ambiguous request", f"Two {name.decode()} headers."), []
            headers[name] = value
        host = headers.get(b"host", b"").decode("latin-1").lower()
        names = self.names | self._connected_to(scope) if self.everywhere else self.names
        if host not in names:
            known = ", ".join(sorted(names))
            return *problem(421, "Not this server", f"The console answers to {known}, not to {host!r}."), []
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in {
            f"{scheme}://{n}" for n in names for scheme in ("http", "https")
        }:
            return *problem(403, "Foreign origin", "Only the console's own page may call it from a browser."), []
        if self.token is not None and not _open(scope["path"]) and not self._knows_token(headers, scope):
            challenge = [(b"www-authenticate", b"Bearer")]
            return *problem(401, "Token needed", "Send 'Authorization: Bearer TOKEN' (the console's --console-token)."), challenge
        return None

    @staticmethod
    def _connected_to(scope: Scope) -> frozenset[str]:
        """The address of this connection's own end, if it is one."""
        host, port = scope.get("server") or ("", None)
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return frozenset()
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        return frozenset({f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"})

    def _knows_token(self, headers: dict[bytes, bytes], scope: Scope) -> bool:
        assert self.token is not None
        offered = headers.get(b"authorization", b"")
        if offered[:7].lower() == b"bearer " and hmac.compare_digest(offered[7:].strip(), self.token):
            return True
        for cookie in headers.get(b"cookie", b"").split(b";"):
            name, _, value = cookie.strip().partition(b"=")
            if name == b"qm_token" and hmac.compare_digest(unquote_to_bytes(value), self.token):
                return True
        return False


def _open(path: str) -> bool:
    """What needs no token: that we are alive, and the page's own files, which ask the user for it and hold nobody's data."""
    return path in ("/", "/healthz") or path.startswith("/page/")
