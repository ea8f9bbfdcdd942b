"""Who is let in, and what is said where no handler is: Host, Origin, redirects, 404, 405. As gin and Ollama's own checks do.

The Host check is that of a server bound to loopback. Every answer here was observed, but for the preflight's exact list of
headers, which is by reading.
"""

from __future__ import annotations

import ipaddress
import posixpath
import socket
from collections.abc import Collection
from typing import Literal, TypeAlias

from probes.sim.http import Request, Response

__all__ = ["cors", "host_allowed", "redirect"]

_ORIGIN_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")
_ORIGIN_SCHEMES = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")
_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_STAINLESS = (
    "Lang", "Package-Version", "Os", "Arch", "Retry-Count", "Runtime", "Runtime-Version", "Async", "Helper-Method", "Poll-Helper",
    "Custom-Poll-Interval", "Timeout",
)  # fmt: skip
_PLAIN = ("Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta")
_HEADERS = ",".join([*_PLAIN, *(f"X-Stainless-{name}" for name in _STAINLESS)])
Verdict: TypeAlias = Literal["go on", "done"]


def host_allowed(host: str | None) -> Literal["ip", "name", "no"]:
    """Loopback, private and unspecified addresses, localhost, this machine's name, and local top-level names."""
    name = (host or "").lower()
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0] if name.count(":") == 1 else name
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        known = name in ("", "localhost", socket.gethostname().lower()) or name.endswith((".localhost", ".local", ".internal"))
        return "name" if known else "no"
    return "ip" if address.is_loopback or address.is_private or address.is_unspecified else "no"


def origin_allowed(origin: str) -> bool:
    if origin.startswith(_ORIGIN_SCHEMES):
        return True
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and rest.partition(":")[0] in _ORIGIN_HOSTS


def cors(request: Request, response: Response) -> Verdict:
    """Judge Origin and Host, add what a browser needs. "done": the answer is already set (403 or 204, without body)."""
    origin, host = request.header("origin"), request.header("host")
    if origin and origin not in (f"http://{host}", f"https://{host}"):
        if not origin_allowed(origin):
            response.status = 403
            return "done"
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Headers"] = _HEADERS
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            response.headers["Access-Control-Max-Age"] = "43200"
            response.headers["Vary"] = ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"]
            response.status = 204
            return "done"
    allowed = host_allowed(host)
    if allowed == "no":
        response.status = 403
        return "done"
    if allowed == "name" and request.method == "OPTIONS":
        response.status = 204
        return "done"
    return "go on"


def redirect(request: Request, response: Response, paths: Collection[str]) -> bool:
    """`//` and `..` are cleaned by Go's mux, a trailing slash is taken off by gin: 301 for GET, else 307."""
    path, query, rest = request.target.partition("?")
    clean = posixpath.normpath(path).replace("//", "/") if path != "/" else path
    if clean == path or not path.startswith("/"):
        return False
    if path.endswith("/") and "//" not in path and "/.." not in path and "/./" not in path and clean not in paths:
        return False
    response.status = 301 if request.method == "GET" else 307
    response.headers["Location"] = clean + query + rest
    if request.method == "GET":
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        response.write(f'<a href="{clean + query + rest}">Moved Permanently</a>.\n\n'.encode())
    return True
