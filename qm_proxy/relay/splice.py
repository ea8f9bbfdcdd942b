"""Two sockets joined: what one says the other is told, bytes and ends alike, as it came and at once.

Rules that hold here:

- Forward first, then stamp and copy. A read that the other side does not take whole keeps its rest (at most one read) and
  stops reading until it is gone: flow control is the kernel's, memory is bounded, and the pause is a record of its own.
- FIN → FIN, the rest stays open. Reset → reset, also while nothing flows, while paused, while half-closed. No timeout.
- A reset upstream does not take back what it had sent: all that our kernel has received is delivered, then the client is
  reset, when its kernel has everything (directly it would also find the bytes before the reset).
- A reset client is told upstream at once; nothing is delivered first: the model should stop.
- On a unix socket the kernel has no reset to pass on: there it becomes a close, as it would directly.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import ClassVar, Protocol

from qm_proxy.relay.pipe import LAG_UNKNOWN, Kind
from qm_proxy.relay.readiness import GONE, READ, WRITE, Readiness
from qm_proxy.relay.tap import Tap

__all__ = ["COPIED_REQUEST_BYTES", "READ_BYTES", "Connection", "End", "Shared", "Splice", "abort", "close", "undelivered_bytes"]

READ_BYTES = 128 * 1024
COPIED_REQUEST_BYTES = 32 * 1024 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST
_SIOCOUTQNSD = 0x894B  # Linux: bytes not sent yet (those sent and not acknowledged left out)
_SO_NWRITE = 0x1024  # macOS: bytes not sent yet

_now = time.monotonic_ns
_CLIENT_DATA = int(Kind.CLIENT_DATA)  # an enum's look-up costs a third of packing the record
_UPSTREAM_DATA = int(Kind.UPSTREAM_DATA)


class Connection(Protocol):
    """What a connection currently is: arriving, joined, refused, or taking leave. The relay holds it by its number."""

    def end(self, *, gently: bool) -> None:
        """The relay stops: end it now; `gently` (FIN instead of reset) when nothing is under way on it."""


class Shared:
    """What all connections of one relay have in common."""

    __slots__ = ("buffer", "connections", "loop", "on_last", "readiness", "tap", "view")

    def __init__(self, loop: asyncio.AbstractEventLoop, readiness: Readiness, tap: Tap, on_last: Callable[[], None]) -> None:
        self.loop = loop
        self.readiness = readiness
        self.tap = tap
        self.connections: dict[int, Connection] = {}
        self.on_last = on_last  # called when the last connection is gone
        self.buffer = bytearray(READ_BYTES)
        self.view = memoryview(self.buffer)

    def over(self, number: int, *kinds: Kind) -> None:
        """A connection's last socket is closed: `kinds` says why, CLOSED follows. Once for each connection."""
        t_ns = _now()
        for kind in (*kinds, Kind.CLOSED):
            self.tap.add(kind, number, t_ns, 0, 0)
        del self.connections[number]
        if not self.connections:
            self.on_last()


class End:
    """One of the two sockets."""

    __slots__ = (
        "backlog",
        "copied",
        "eof",
        "fd",
        "fin_sent",
        "is_client",
        "other",
        "reading",
        "reset",
        "seen",
        "sock",
        "splice",
    )

    other: End

    def __init__(self, splice: Splice, sock: socket.socket, *, is_client: bool) -> None:
        self.splice = splice
        self.sock = sock
        self.fd = sock.fileno()
        self.is_client = is_client
        self.backlog: bytes | None = None  # read from `other`, not yet taken by this one's kernel
        self.seen = 0  # bytes read from it
        self.copied = 0  # client only: bytes copied since upstream last said something
        self.eof = False  # it said FIN
        self.fin_sent = False
        self.reset = False  # known to be reset; what it had sent may still lie in our kernel
        self.reading = True

    def ready(self, events: int) -> None:
        if events & WRITE and self.backlog is not None:
            self._write_backlog()
        if self.reading:
            if events & (READ | GONE):
                self._read()
        elif events & GONE and not (self.reset or self.splice.ended):
            self._look_for_reset()

    def failed(self) -> None:
        self.splice.end(gently=False)

    def _read(self) -> None:
        splice = self.splice
        shared = splice.shared
        try:
            size = self.sock.recv_into(shared.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            splice.was_reset(self)
            return
        t_ns = _now()
        if not size:
            if self.reset:
                splice.was_reset(self)
            else:
                splice.said_fin(self)
            return
        self._pass_on(shared.view[:size], t_ns)

    def _pass_on(self, data: memoryview, t_ns: int) -> None:
        """What was just read: to the other side first, then to the tap."""
        splice, other, size = self.splice, self.other, len(data)
        tap = splice.shared.tap
        broken = False
        try:
            sent = other.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            sent, broken = 0, True
        lag_ns = min(_now() - t_ns, LAG_UNKNOWN) if sent == size else LAG_UNKNOWN
        seen = self.seen
        self.seen = seen + size
        if not self.is_client:
            other.copied = 0
            tap.add(_UPSTREAM_DATA, splice.number, t_ns, seen, lag_ns, data)
        elif self.copied + size > COPIED_REQUEST_BYTES:
            tap.skip(_CLIENT_DATA, splice.number, t_ns, seen, lag_ns, size)
        else:
            self.copied += size
            tap.add(_CLIENT_DATA, splice.number, t_ns, seen, lag_ns, data)
        if broken:
            other.broke()
        elif sent != size:
            other.hold(bytes(data[sent:]))

    def hold(self, rest: bytes) -> None:
        """This side's kernel is full: keep the rest, and read no more from the other side until it is gone."""
        splice = self.splice
        self.backlog = rest
        self.other.stop_reading()
        if splice.ended:
            return
        splice.shared.readiness.change(self.fd, self._interest())
        splice.note(Kind.CLIENT_SLOW if self.is_client else Kind.UPSTREAM_SLOW, self)

    def _write_backlog(self) -> None:
        backlog = self.backlog
        assert backlog is not None
        try:
            sent = self.sock.send(backlog)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.broke()
            return
        if sent < len(backlog):
            self.backlog = backlog[sent:]
            return
        self.backlog = None
        splice = self.splice
        splice.note(Kind.CLIENT_READY if self.is_client else Kind.UPSTREAM_READY, self)
        splice.shared.readiness.change(self.fd, self._interest())
        self.other.go_on_reading()

    def broke(self) -> None:
        """It cannot be written any more: it was reset. What it had sent before may still lie in our kernel: that is read
        to the end (a reset socket is always readable), unless nobody can take it."""
        if self.reset:
            return
        self.reset = True
        if self.backlog is not None:
            self.backlog = None
            self.splice.shared.readiness.change(self.fd, self._interest())
        if not self.reading:
            self.splice.is_reset_unread(self)

    def _look_for_reset(self) -> None:
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.broke()

    def stop_reading(self) -> None:
        if self.reading:
            self.reading = False
            if self.reset and self.is_client:  # its reset was to be found by reading on
                self.splice.was_reset(self)
            else:
                self.splice.shared.readiness.change(self.fd, self._interest())

    def go_on_reading(self) -> None:
        if not (self.reading or self.eof):
            self.reading = True
            self.splice.shared.readiness.change(self.fd, self._interest())

    def say_fin(self) -> None:
        """Nothing waits before it: the other side is read to its FIN only while there is no backlog here."""
        self.fin_sent = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # reset meanwhile
            self.broke()

    def _interest(self) -> int:
        return (READ if self.reading else 0) | (WRITE if self.backlog is not None else 0)


class Splice:
    """A client's connection and ours to the upstream, from the moment both stand."""

    __slots__ = ("client", "ended", "number", "shared", "upstream")

    client_end: ClassVar[type[End]] = End
    upstream_end: ClassVar[type[End]] = End

    def __init__(self, shared: Shared, number: int, client: socket.socket, upstream: socket.socket) -> None:
        """Takes both sockets, connected and non-blocking."""
        self.shared = shared
        self.number = number
        self.ended = False
        self.client = self.client_end(self, client, is_client=True)
        self.upstream = self.upstream_end(self, upstream, is_client=False)
        self.client.other, self.upstream.other = self.upstream, self.client
        shared.connections[number] = self
        shared.readiness.watch(self.client.fd, self.client, READ)
        shared.readiness.watch(self.upstream.fd, self.upstream, READ)
        self.note(Kind.CONNECTED, self.upstream)

    def note(self, kind: Kind, end: End) -> None:
        self.shared.tap.add(kind, self.number, _now(), end.seen, 0)

    def said_fin(self, end: End) -> None:
        """FIN from one side: the other is told; everything else stays open."""
        end.eof = True
        end.stop_reading()
        self.note(Kind.CLIENT_EOF if end.is_client else Kind.UPSTREAM_EOF, end)
        end.other.say_fin()
        self._close_if_over()

    def is_reset_unread(self, end: End) -> None:
        """A side that we are not reading was reset."""
        if end.is_client or end.eof:
            self.was_reset(end)
        else:  # the client is slow: the rest of the answer lies in our kernel and goes on when it has taken the backlog
            self.client.stop_reading()

    def was_reset(self, end: End) -> None:
        """A side was reset and all it had sent is passed on (upstream), or need not be (client)."""
        self.note(Kind.CLIENT_RESET if end.is_client else Kind.UPSTREAM_RESET, end)
        if end.is_client:
            self.cut()
        else:
            self._drop(end, close)
            self._reset_client_when_delivered()

    def cut(self) -> None:
        """End both sides with a reset, now."""
        self._drop(self.upstream, abort)
        self._drop(self.client, abort)
        self._over()

    def end(self, *, gently: bool) -> None:
        how = close if gently else abort
        self._drop(self.upstream, how)
        self._drop(self.client, how)
        self._over(Kind.SHUTDOWN)

    def _reset_client_when_delivered(self, delay_s: float = 0.0005) -> None:
        client = self.client
        if self.ended:
            return
        if client.reset or not undelivered_bytes(client.sock):
            self.cut()
        else:
            client.stop_reading()
            self.shared.loop.call_later(delay_s, self._reset_client_when_delivered, min(2 * delay_s, 0.05))

    def _close_if_over(self) -> None:
        client, upstream = self.client, self.upstream
        if client.eof and upstream.eof and client.fin_sent and upstream.fin_sent:
            self._drop(upstream, close)
            self._drop(client, close)
            self._over()

    def _drop(self, end: End, how: Callable[[Shared, socket.socket], None]) -> None:
        end.reading = False
        end.eof = True  # so that nothing starts to read it again
        end.backlog = None
        how(self.shared, end.sock)

    def _over(self, *kinds: Kind) -> None:
        if not self.ended:
            self.ended = True
            self.shared.over(self.number, *kinds)


def close(shared: Shared, sock: socket.socket) -> None:
    """Stop watching and close; twice does no harm."""
    if (fd := sock.fileno()) >= 0:
        shared.readiness.forget(fd)
        sock.close()


def abort(shared: Shared, sock: socket.socket) -> None:
    """Close with a reset (TCP)."""
    if sock.fileno() >= 0:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        close(shared, sock)


def undelivered_bytes(sock: socket.socket) -> int:
    """Bytes that a reset would take back from the peer: those that our kernel has not sent to it yet. A unix socket takes
    nothing back."""
    if sock.family == socket.AF_UNIX:
        return 0
    try:
        if sys.platform == "linux":
            return int.from_bytes(fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, b"\0\0\0\0"), sys.byteorder)
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    except OSError:
        return 0
