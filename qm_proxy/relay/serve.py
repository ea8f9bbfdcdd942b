"""All that one relay does: accept, join, drain; and the one case in which we speak."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

from qm_proxy.relay.addresses import BACKLOG
from qm_proxy.relay.control import Control
from qm_proxy.relay.dial import Dial, Target
from qm_proxy.relay.farewell import Refusal
from qm_proxy.relay.guard import GuardedSplice, Orders
from qm_proxy.relay.loop import RelayLoop
from qm_proxy.relay.pipe import Kind
from qm_proxy.relay.readiness import GONE, READ, Readiness
from qm_proxy.relay.splice import Shared, Splice, close
from qm_proxy.relay.tap import Tap

__all__ = ["Relay", "Reply", "plain_reply"]

Reply: TypeAlias = Callable[[bytes, str, str], bytes]
"""(request head, upstream URL, reason) → the whole HTTP response of a proxy whose upstream cannot be reached."""

_STATS_S = 1.0
_ACCEPT_AT_ONCE = 64
_ACCEPT_AGAIN_S = 0.1  # after the machine refused us a descriptor
_LAST_RECORDS_S = 2.0
_KEEPALIVE_S = 15  # what Ollama's own listener (Go's net.ListenConfig) sets: a vanished client is noticed as directly
_KEEPALIVE_PROBES = 9


def plain_reply(head: bytes, upstream_url: str, reason: str) -> bytes:
    """The answer where no Reply was given."""
    body = json.dumps({"error": f"qm-proxy: cannot reach the upstream {upstream_url}: {reason}"}).encode()
    start = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head_only = head[:5].upper() == b"HEAD "
    return start + b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if head_only else body)


class Relay:
    """All that one process does. Made inside a running loop; `closed` is set when it has drained: then `finish`."""

    def __init__(
        self,
        target: Target,
        listeners: list[socket.socket],
        *,
        pipe: socket.socket | None = None,
        control: socket.socket | None = None,
        relay: int = 0,
        guard: bool = False,
        reply: Reply = plain_reply,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self._loop = loop
        self._target = target
        self._reply = reply
        own = loop.readiness if isinstance(loop, RelayLoop) else None
        self._readiness = Readiness() if own is None else own
        self._nested = own is None  # the queue is one of the loop's descriptors
        self._tap = Tap(loop, pipe, relay)
        self.shared = Shared(loop, self._readiness, self._tap, self._last_gone)
        self._pipe = pipe
        self._orders: Orders | None = None
        if guard and pipe is not None:
            self._orders = Orders(self.shared, pipe)
            self._readiness.watch(pipe.fileno(), self._orders, READ)
        self._listeners = [Listener(self, listener) for listener in listeners]
        self._control = Control(self, control) if control is not None else None
        self._accepting = True
        self._accepted = 0
        self._accept_failures = 0
        self._accept_error: str | None = None
        self._refused = 0
        self._reply_failures = 0
        self._stats_due_ns = 0
        self._stats_timer: asyncio.TimerHandle | None = None
        if self._nested:
            loop.add_reader(self._readiness.fileno(), self._readiness.run)
        self._arm_stats()

    def report(self) -> None:
        """Send everything that waits for the pipe, and say how we are over the control line."""
        self._tap.flush()
        self.say({"stats": self.stats()})

    def say(self, message: dict[str, object]) -> None:
        if self._control is not None:
            self._control.say(message)

    def drain(self) -> None:
        """Accept nothing more; `closed` when the last connection has ended."""
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                listener.close()
        if not self.shared.connections:
            self.closed.set()

    def stop(self, grace_s: float) -> None:
        """`drain`, and end by force what is left after the grace."""
        self.drain()
        self._loop.call_later(grace_s, self.end)

    def end(self, numbers: list[int] | None = None) -> None:
        """End these connections gently; without numbers all of them: with a reset, so that no cut stream looks complete."""
        connections = self.shared.connections
        for number in list(connections) if numbers is None else numbers:
            if (connection := connections.get(number)) is not None:
                connection.end(gently=numbers is not None)

    def arrived(self, sock: socket.socket, address: object) -> None:
        self._accepted += 1
        Arrival(self, self._accepted, sock, address, self._target)

    def join(self, number: int, client: socket.socket, upstream: socket.socket, was_reset: bool) -> None:
        if self._orders is None:
            splice = Splice(self.shared, number, client, upstream)
        else:
            splice = GuardedSplice(self.shared, number, client, upstream, self._orders)
        splice.upstream.reset = was_reset  # what it said before is still to be read

    def refused(self, number: int, sock: socket.socket, reason: str, retry: Callable[[], None]) -> None:
        self._refused += 1
        Refusal(self.shared, number, sock, reason, self._answer, retry)

    def cannot_accept(self, failure: OSError) -> None:
        """No descriptor or memory for another client. Counted, said in the next STATS; who waits is accepted later."""
        self._accept_failures += 1
        self._accept_error = failure.strerror

    def _answer(self, head: bytes, reason: str) -> bytes:
        url = self._target.upstream.url
        try:
            return self._reply(head, url, reason)
        except Exception:  # another's code must not cost the client its answer
            self._reply_failures += 1
            return plain_reply(head, url, reason)

    async def finish(self) -> None:
        """When `closed`: let the observer take the last records, tell the supervisor, and let go of everything."""
        if self._stats_timer is not None:
            self._stats_timer.cancel()
        self._write_stats()
        await self._tap.drain(_LAST_RECORDS_S)
        self.say({"drained": True})
        if self._control is not None:
            self._control.close()
        if self._orders is not None and self._pipe is not None:
            self._readiness.forget(self._pipe.fileno())
        self._tap.close()
        if self._nested:
            self._loop.remove_reader(self._readiness.fileno())
            self._readiness.close()

    def _last_gone(self) -> None:
        if not self._accepting:
            self.closed.set()

    def _arm_stats(self) -> None:
        self._stats_due_ns = time.monotonic_ns() + int(_STATS_S * 1e9)
        self._stats_timer = self._loop.call_later(_STATS_S, self._on_stats)

    def _on_stats(self) -> None:
        self._tap.late_ns = max(self._tap.late_ns, time.monotonic_ns() - self._stats_due_ns)
        self._write_stats()
        self._arm_stats()

    def _write_stats(self) -> None:
        stats = self.stats()
        self._accept_error = None
        self._tap.add(Kind.STATS, 0, time.monotonic_ns(), 0, 0, json.dumps(stats).encode())

    def stats(self) -> dict[str, object]:
        """About the relay itself. `loop_lag_max_ms` is since the last call."""
        tap = self._tap
        stats: dict[str, object] = {
            "rss_bytes": _rss_bytes(),
            "cpu_s": time.process_time(),
            "connections_open": len(self.shared.connections),
            "connections_total": self._accepted,
            "sockets_watched": len(self._readiness),
            "tasks": len(asyncio.all_tasks(self._loop)),
            "refused_total": self._refused,
            "reply_failures": self._reply_failures,
            "accept_failures": self._accept_failures,
            "internal_failures": self._readiness.failures + tap.failures,
            "loop_lag_max_ms": tap.take_late_ns() / 1e6,
            "pending_bytes": tap.pending_bytes,
            "dropped_batches": tap.dropped_batches,
            "dropped_records": tap.dropped_records,
            "dropped_bytes": tap.dropped_bytes,
            "skipped_bytes": tap.skipped_bytes,
            "draining": not self._accepting,
        }
        if self._accept_error is not None:
            stats["accept_error"] = self._accept_error
        if self._orders is not None:
            stats["cuts"], stats["cuts_refused"] = self._orders.carried_out, self._orders.refused
        return stats


class Listener:
    """One listening socket. May be shared with other relays: an accept that finds nobody is no news."""

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self._relay = relay
        self._sock = sock
        self._readiness = relay.shared.readiness
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._readiness.watch(sock.fileno(), self, READ)

    def ready(self, events: int) -> None:
        self._readiness.later(self._accept)

    def failed(self) -> None: ...

    def close(self) -> None:
        close(self._relay.shared, self._sock)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            if self._sock.fileno() < 0:
                return
            try:
                client, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as failure:
                if failure.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._relay.cannot_accept(failure)
                    self._readiness.change(self._sock.fileno(), 0)
                    self._relay.shared.loop.call_later(_ACCEPT_AGAIN_S, self._go_on)
                    return
                continue  # a client that left before it was accepted
            client.setblocking(False)
            if client.family != socket.AF_UNIX:
                _as_ollama_would(client)
            self._relay.arrived(client, address)

    def _go_on(self) -> None:
        if self._sock.fileno() >= 0:
            self._readiness.change(self._sock.fileno(), READ)


class Arrival:
    """A client from its accept until the upstream is reached or not. Its bytes wait in the kernel."""

    __slots__ = ("_dial", "_number", "_relay", "_sock", "_target", "_waits")

    def __init__(self, relay: Relay, number: int, sock: socket.socket, address: object, target: Target) -> None:
        self._relay = relay
        self._number = number
        self._sock = sock
        self._target = target
        self._waits = True
        self._dial: Dial | None = None
        shared = relay.shared
        shared.connections[number] = self
        shared.tap.add(Kind.OPENED, number, time.monotonic_ns(), 0, 0, _in_words(address))
        self._start()

    def ready(self, events: int) -> None:
        """It can only have died: it is not read yet."""
        if self._waits and events & GONE and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._leave(Kind.CLIENT_RESET)

    def failed(self) -> None:
        self.end(gently=False)

    def end(self, *, gently: bool) -> None:
        self._leave(Kind.SHUTDOWN)

    def _start(self) -> None:
        self._waits = True
        dial = Dial(self._relay.shared, self._target, self._connected, self._failed)
        dial.start()
        if self._waits:
            self._dial = dial  # only now: a reference both ways would leave each connection to the garbage collector
            self._relay.shared.readiness.watch(self._sock.fileno(), self, 0)

    def _connected(self, upstream: socket.socket, was_reset: bool) -> None:
        self._waits, self._dial = False, None
        self._relay.join(self._number, self._sock, upstream, was_reset)

    def _failed(self, reason: str) -> None:
        self._waits, self._dial = False, None
        self._relay.refused(self._number, self._sock, reason, self._retry)

    def _retry(self) -> None:
        self._relay.shared.connections[self._number] = self
        self._relay.shared.readiness.later(self._start)

    def _leave(self, kind: Kind) -> None:
        self._waits = False
        if self._dial is not None:
            self._dial.cancel()
        close(self._relay.shared, self._sock)
        self._relay.shared.over(self._number, kind)


def _as_ollama_would(client: socket.socket) -> None:
    """The options that Ollama's listener gives a client's socket."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    with contextlib.suppress(OSError, AttributeError):
        if idle is not None:
            client.setsockopt(socket.IPPROTO_TCP, idle, _KEEPALIVE_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def _rss_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, and the peak
        return peak if sys.platform == "darwin" else None


def _in_words(address: object) -> bytes:
    if isinstance(address, tuple):
        host, port = address[0], address[1]
        return f"[{host}]:{port}".encode() if ":" in host else f"{host}:{port}".encode()
    return os.fsencode(address) if isinstance(address, (str, bytes)) and address else b"unix"
