"""The line between a relay and its supervisor: JSON lines over a socket.

    → {"drain": true}       accept nothing more; end when the last connection has ended, however long that takes
    → {"stop": grace_s}     the same, but what is left after the grace is ended by us
    → {"end": [number, …]}  end these connections gently (FIN): the observer knows that nothing is under way on them
    → {"report": true}      flush the pipe and say the STATS
    ← {"stats": {…}}
    ← {"ready": true, "listening": ["127.0.0.1:11436", …]}      it accepts
    ← {"drained": true}     the last connection is gone; it exits

If that socket closes (the supervisor was killed) the relay drains by itself: streams outlive everybody.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Protocol

from qm_proxy.relay.readiness import READ
from qm_proxy.relay.splice import Shared, close

__all__ = ["Control", "Ordered"]

_CONTROL_BYTES = 1024 * 1024


class Ordered(Protocol):
    """Who follows the orders: the relay."""

    shared: Shared

    def drain(self) -> None: ...
    def stop(self, grace_s: float) -> None: ...
    def end(self, numbers: list[int] | None = None) -> None: ...
    def report(self) -> None: ...


class Control:
    """The supervisor's orders and our answers, JSON lines."""

    def __init__(self, relay: Ordered, sock: socket.socket) -> None:
        self._relay = relay
        self._sock = sock
        self._text = bytearray()
        sock.setblocking(False)
        relay.shared.readiness.watch(sock.fileno(), self, READ)

    def say(self, message: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # a supervisor that died; a few lines always fit the kernel's buffer
            self._sock.send(json.dumps(message).encode() + b"\n")

    def ready(self, events: int) -> None:
        try:
            data = self._sock.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._relay.drain()
            return
        self._text += data
        *lines, rest = bytes(self._text).split(b"\n")
        self._text[:] = rest[:_CONTROL_BYTES]
        for line in lines:
            self._follow(line)

    def failed(self) -> None: ...

    def close(self) -> None:
        close(self._relay.shared, self._sock)

    def _follow(self, line: bytes) -> None:
        try:
            order = json.loads(line)
        except ValueError:
            return
        if not isinstance(order, dict):
            return
        match order:
            case {"stop": int() | float() as grace_s}:
                self._relay.stop(grace_s)
            case {"drain": True}:
                self._relay.drain()
            case {"report": True}:
                self._relay.report()
            case {"end": [*numbers]}:
                self._relay.end([number for number in numbers if isinstance(number, int)])
