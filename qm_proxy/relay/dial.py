"""The way to the upstream: every address is tried, without waiting longer than the kernel does.

On loopback and on unix sockets the connection stands (or is refused) before `connect` returns, so that nothing is deferred.
An address that does not answer within `NEXT_S` is joined by the next one, and the first that stands is taken (RFC 8305; the
clients that would come directly do so too). A host name is resolved at the start, and again when no address answered.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from qm_proxy.relay.addresses import Upstream
from qm_proxy.relay.readiness import WRITE
from qm_proxy.relay.splice import Shared, close
from qm_proxy.tasks import spawn

__all__ = ["NEXT_S", "Dial", "Target"]

Address: TypeAlias = tuple[int, tuple[object, ...] | str]  # family, and what `connect` takes
NEXT_S = 0.25
_STOOD = (errno.ECONNRESET, errno.EPIPE)  # a connection that never stood fails with ECONNREFUSED
_BACKLOG_FULL_S = 0.005  # a unix socket's backlog is full: the kernel would let a blocking client wait


class Target:
    """The upstream and its addresses, the one that answered last in front. One for a relay."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.addresses: tuple[Address, ...] = ()

    async def resolve(self) -> str | None:
        """Look the name up; the reason in words if that fails (the old addresses are kept)."""
        upstream = self.upstream
        if upstream.unix is not None:
            self.addresses = ((socket.AF_UNIX, upstream.unix),)
            return None
        try:
            found = await _look_up(upstream.host, upstream.port)
        except (OSError, ValueError) as failure:
            return f"the name {upstream.host!r} cannot be resolved ({getattr(failure, 'strerror', None) or failure})"
        self.addresses = tuple(dict.fromkeys((int(family), where) for family, _, _, _, where in found))
        return None

    def answered(self, address: Address) -> None:
        if self.addresses[0] != address:
            self.addresses = (address, *(other for other in self.addresses if other != address))


class Dial:
    """One attempt to reach the upstream. Exactly one of `connected(socket, was_reset)` and `failed(reason)` is called, unless
    `cancel` came first; either may be called before `start` returns. `was_reset`: it answered, and has reset us since."""

    __slots__ = (
        "_connected",
        "_failed",
        "_over",
        "_pending",
        "_reason",
        "_resolved",
        "_shared",
        "_target",
        "_timer",
        "_to_try",
        "_tried",
    )

    def __init__(
        self, shared: Shared, target: Target, connected: Callable[[socket.socket, bool], None], failed: Callable[[str], None]
    ) -> None:
        self._shared = shared
        self._target = target
        self._connected = connected
        self._failed = failed
        self._pending: dict[socket.socket, Address] = {}
        self._to_try: deque[Address] = deque(target.addresses)
        self._tried: set[Address] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._reason = "no address is known"
        self._resolved = False
        self._over = False

    def start(self) -> None:
        """Opens descriptors: see `Readiness.later`."""
        self._stop_timer()
        while not self._over and self._to_try:
            address = self._to_try.popleft()
            self._tried.add(address)
            if self._try(address):
                if self._to_try and not self._over and self._timer is None:
                    self._timer = self._shared.loop.call_later(NEXT_S, self.start)
                return
        if not self._over and not self._pending:
            self._none_answered()

    def cancel(self) -> None:
        self._over = True
        self._stop_timer()
        for sock in self._pending:
            close(self._shared, sock)
        self._pending.clear()

    def ready(self, events: int) -> None:
        """One of the pending sockets has news; asking all of them is simpler than knowing which."""
        for sock, address in list(self._pending.items()):
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure in _STOOD or (not failure and _stands(sock)):
                self._shared.readiness.forget(sock.fileno())
                self._succeed(sock, address, failure != 0)
                return
            if failure:
                self._refused(sock, _spoken(os.strerror(failure)))
                self._shared.readiness.later(self.start)

    def failed(self) -> None:
        self.cancel()

    def _try(self, address: Address) -> bool:
        """Begin with one address; False when it failed at once."""
        family, where = address
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as failure:
            self._reason = _in_words(failure)
            return False
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            result = sock.connect_ex(where)
        except OSError as failure:  # a path that is too long, a name that is none
            self._refused(sock, _in_words(failure))
            return False
        if result == errno.EAGAIN and family == socket.AF_UNIX:
            sock.close()
            self._to_try.appendleft(address)
            self._timer = self._shared.loop.call_later(_BACKLOG_FULL_S, self.start)
            return True
        if result == errno.EINPROGRESS:
            result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not result and not _stands(sock):
                self._pending[sock] = address
                self._shared.readiness.watch(sock.fileno(), self, WRITE)
                return True
        if result and result not in _STOOD:
            self._refused(sock, _spoken(os.strerror(result)))
            return False
        self._succeed(sock, address, result != 0)
        return True

    def _refused(self, sock: socket.socket, reason: str) -> None:
        self._reason = reason
        self._pending.pop(sock, None)
        close(self._shared, sock)

    def _succeed(self, sock: socket.socket, address: Address, was_reset: bool) -> None:
        self._pending.pop(sock, None)
        self.cancel()
        self._target.answered(address)
        self._connected(sock, was_reset)

    def _none_answered(self) -> None:
        if self._resolved or self._target.upstream.unix is not None:
            self._over = True
            self._failed(self._reason)
        else:
            self._resolved = True
            spawn(self._resolve(), name="resolve the upstream's name")

    async def _resolve(self) -> None:
        reason = await self._target.resolve()
        if reason is not None:
            self._reason = reason
        if not self._over:
            self._to_try.extend(address for address in self._target.addresses if address not in self._tried)
            self.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _look_up(host: str, port: int) -> Sequence[tuple[int, int, int, str, tuple[object, ...]]]:
    try:  # a number needs no thread
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _in_words(failure: OSError) -> str:
    return _spoken(str(failure.strerror or failure))


def _spoken(reason: str) -> str:
    """As it stands within a sentence."""
    return reason[:1].lower() + reason[1:]


def _stands(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
