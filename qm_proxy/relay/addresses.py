"""Where we listen and where the upstream is: the text a user gives → sockets and addresses. Pure but for `bind`.

`OLLAMA_HOST` is read as Ollama reads it (envconfig.Host of 0.33): quotes and spaces around it do not matter, a bare host or a
bare port is enough, the port is 11434, or 80 after `http://`, and a port that is no number from 0 to 65535 counts as absent.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qm_proxy.errors import PortInUse, SettingsError

__all__ = ["BACKLOG", "Upstream", "bind", "is_loopback", "listens_at", "name_of", "parse_upstream"]

BACKLOG = 4096
DEFAULT_PORT = 11434
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
_TLS_ADVICE = "Put a TLS proxy (Caddy, nginx, stunnel) between, and give its plain http address as the upstream."
_PATH_ADVICE = "Put a proxy that adds the path (Caddy, nginx) between, and give its plain http address as the upstream."


@dataclass(frozen=True, slots=True)
class Upstream:
    """The one server behind a proxy: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    unix: str | None = None

    @property
    def url(self) -> str:
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"http://{_bracketed(self.host)}:{self.port}"


def parse_upstream(text: str) -> Upstream:
    """The upstream that `text` names, in any form that `OLLAMA_HOST` may have, or `unix:/path`.

    A host that means "all interfaces" (none, 0.0.0.0, ::) is the loopback address for a client. Raises SettingsError for what
    a splice cannot reach: TLS, a path prefix, another scheme.
    """
    given = text
    text = text.strip().strip("\"'").strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path:
            raise SettingsError(f"The upstream {given!r} names no path.", remedy="Give it as unix:/path/to/socket.")
        return Upstream(unix=path)
    scheme, separator, rest = text.partition("://")
    default_port = DEFAULT_PORT
    if not separator:
        scheme, rest = "http", text
        if text == "ollama.com":
            scheme = "https"
    elif scheme.lower() == "http":
        default_port = 80
    if scheme.lower() == "https":
        raise SettingsError(
            f"The upstream {given!r} is https: qm-proxy moves bytes as they are and ends no TLS.", remedy=_TLS_ADVICE
        )
    if scheme.lower() != "http":
        raise SettingsError(f"The upstream {given!r} has the scheme {scheme!r}; http or unix was expected.", remedy=_TLS_ADVICE)
    address, _, path = rest.partition("/")
    if path.strip("/"):
        raise SettingsError(
            f"The upstream {given!r} has the path prefix /{path}: requests are passed on unchanged.", remedy=_PATH_ADVICE
        )
    if any(character in address for character in "@?# \t"):
        raise SettingsError(f"The upstream {given!r} is not a host and a port.", remedy="Give it as host:port.")
    pair = _split(address)
    if pair is None:
        host, port = _ip(address) or address or "127.0.0.1", default_port
        if ":" in host and _ip(host) is None:
            raise SettingsError(f"The upstream {given!r} is not a host and a port.", remedy="Give it as host:port.")
    else:
        number = _port(pair[1])
        host, port = pair[0], default_port if number is None else number
    if port == 0:
        raise SettingsError(f"The upstream {given!r} has the port 0.", remedy="Give the port that Ollama listens on, e.g. 11434.")
    return Upstream(host=_for_a_client(host), port=port)


def is_loopback(where: str | socket.socket) -> bool:
    """Can only this machine reach it? `where` is a host (name or number) or a listening socket."""
    if isinstance(where, socket.socket):
        if where.family == socket.AF_UNIX:
            return True
        where = str(where.getsockname()[0])
    host = where.strip("[]").partition("%")[0]
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def listens_at(upstream: Upstream, listeners: Iterable[socket.socket]) -> bool:
    """Is the upstream one of these sockets (so that the proxy would talk to itself)? Resolves the upstream's name."""
    try:
        targets = set() if upstream.unix else {str(found[4][0]) for found in socket.getaddrinfo(upstream.host, upstream.port)}
    except (OSError, ValueError):
        targets = set()
    for listener in listeners:
        name = listener.getsockname()
        if listener.family == socket.AF_UNIX:
            if upstream.unix is not None and Path(os.fsdecode(name)).resolve() == Path(upstream.unix).resolve():
                return True
        elif upstream.unix is None and name[1] == upstream.port:
            everywhere = ipaddress.ip_address(str(name[0]).partition("%")[0]).is_unspecified
            if str(name[0]) in targets or (everywhere and any(_is_ours(target) for target in targets)):
                return True
    return False


def name_of(listener: socket.socket) -> str:
    """How a user would write this listening socket: 127.0.0.1:11436, [::1]:11436, unix:/path."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return f"{_bracketed(str(name[0]))}:{name[1]}"


def bind(address: str, *, default_port: int = 11436) -> list[socket.socket]:
    """Listening, non-blocking sockets for "host:port", "[::1]:port", "localhost:port" (v4 and v6), ":port" (all interfaces),
    "port" (127.0.0.1), "unix:/path". Port 0 takes a free one, the same for every socket of the list.

    Raises PortInUse, or SettingsError where the address is not ours or not an address.
    """
    text = address.strip()
    if text.startswith("unix:"):
        return [_bind_unix(text.removeprefix("unix:").removeprefix("//"))]
    if text.isdecimal():
        text = f"127.0.0.1:{text}"
    pair = _split(text)
    host = (_ip(text) or text) if pair is None else pair[0]
    port = default_port if pair is None else _port(pair[1])
    if port is None or "/" in host or (":" in host and _ip(host.partition("%")[0]) is None):
        raise SettingsError(f"{address!r} is not an address to listen on.", remedy="Give it as host:port, e.g. 127.0.0.1:11436.")
    if host == "localhost":
        hosts = ["127.0.0.1", "::1"]
    elif host in ("", "*"):
        hosts = ["0.0.0.0", "::"]
    else:
        hosts = [host]
    for _ in range(20):
        try:
            return _bind_all(address, hosts, port)
        except PortInUse:  # a port that was free on v4 may be taken on v6
            if port != 0 or len(hosts) == 1:
                raise
    return _bind_all(address, hosts, port)


def _bind_all(address: str, hosts: list[str], port: int) -> list[socket.socket]:
    with ExitStack() as undo:
        bound: list[socket.socket] = []
        for host in hosts:
            try:
                listener = undo.enter_context(_bind_tcp(address, host, port))
            except SettingsError as failure:
                if bound and not isinstance(failure, PortInUse):
                    continue  # a machine without IPv6
                raise
            port = port or listener.getsockname()[1]
            bound.append(listener)
        undo.pop_all()
        return bound


def _bind_tcp(address: str, host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as failure:
        raise SettingsError(f"Cannot listen on {address!r}: {failure}.", remedy="Give an address of this machine.") from failure
    family, kind, protocol, _, where = found[0]
    try:
        listener = socket.socket(family, kind, protocol)
    except OSError as failure:
        raise SettingsError(f"Cannot listen on {address!r}: {failure.strerror}.") from failure
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        raise _cannot_listen(address, failure) from failure
    return listener


def _bind_unix(path: str) -> socket.socket:
    address = f"unix:{path}"
    place = Path(path)
    if not path:
        raise SettingsError("unix: names no path.", remedy="Give it as unix:/path/to/socket.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if place.exists() or place.is_symlink():
            if not stat.S_ISSOCK(place.stat().st_mode):
                raise SettingsError(f"{path!r} exists and is no socket.", remedy="Remove it or choose another path.")
            if _answers(path):
                raise PortInUse(f"Something already listens on {address}.", remedy="Stop it or choose another path.")
            place.unlink()
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        raise _cannot_listen(address, failure) from failure
    except SettingsError:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # a full backlog, no permission: somebody is there
            return True
        return True


def _cannot_listen(address: str, failure: OSError) -> SettingsError:
    if failure.errno == errno.EADDRINUSE:
        return PortInUse(
            f"Something already listens on {address}.",
            remedy="Stop it (another qm-proxy?) or choose another address with --listen.",
        )
    if failure.errno == errno.EACCES:
        return SettingsError(
            f"No permission to listen on {address}.", remedy="Choose a port above 1023, or a directory of yours."
        )
    return SettingsError(f"Cannot listen on {address}: {failure.strerror or failure}.", remedy="Give an address of this machine.")


def _split(text: str) -> tuple[str, str] | None:
    """Host and port text of "host:port" or "[v6]:port", as Go's net.SplitHostPort; None where it finds no such pair."""
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        return None
    if host.startswith("["):
        return (host[1:-1], port) if host.endswith("]") and "[" not in host[1:] else None
    return None if ":" in host or "[" in host or "]" in host else (host, port)


def _port(text: str) -> int | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if 0 <= number <= 65535 else None


def _ip(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def _for_a_client(host: str) -> str:
    if host == "" or host == "0.0.0.0":
        return "127.0.0.1"
    return "::1" if _ip(host) == "::" else host


def _is_ours(target: str) -> bool:
    """Is this number one of this machine's own? The kernel knows: only those can be bound."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((target, 0))
    except OSError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
