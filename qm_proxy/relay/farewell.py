"""The last words to a client: bytes of ours, then FIN, without losing them.

A socket that is closed while the client still sends is reset by the kernel, and the reset takes our words back before the
client has read them (RFC 9112 section 9.6). So what the client sends is read and dropped until it ends by itself.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from qm_proxy.relay.pipe import Kind
from qm_proxy.relay.readiness import GONE, READ, WRITE
from qm_proxy.relay.splice import Shared, close

__all__ = ["HEAD_BYTES", "Farewell", "Refusal"]

HEAD_BYTES = 64 * 1024
_AGAIN_S = 1.0  # a failed connect is so long taken to be true


class Farewell:
    """Writes `words` to a client, says FIN, and waits until the client ends."""

    __slots__ = ("_eof", "_number", "_over", "_said_fin", "_shared", "_sock", "_words")

    def __init__(self, shared: Shared, number: int, sock: socket.socket, words: bytes) -> None:
        shared.connections[number] = self
        self._shared = shared
        self._number = number
        self._sock = sock
        self._words = words
        self._eof = False
        self._said_fin = False
        self._over = False
        shared.readiness.watch(sock.fileno(), self, READ | WRITE)
        self._write()

    def ready(self, events: int) -> None:
        if events & WRITE and not self._said_fin:
            self._write()
        if events & (READ | GONE) and not self._over and not self._eof:
            self._read()

    def failed(self) -> None:
        self.end(gently=False)

    def end(self, *, gently: bool) -> None:
        self._close(Kind.SHUTDOWN)

    def _write(self) -> None:
        try:
            while self._words:
                self._words = self._words[self._sock.send(self._words) :]
            self._sock.shutdown(socket.SHUT_WR)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close(Kind.CLIENT_RESET)
            return
        self._said_fin = True
        if self._eof:
            self._close(Kind.CLIENT_EOF)
        else:
            self._shared.readiness.change(self._sock.fileno(), READ)

    def _read(self) -> None:
        try:
            size = self._sock.recv_into(self._shared.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close(Kind.CLIENT_RESET)
            return
        if size:
            return
        if self._said_fin:
            self._close(Kind.CLIENT_EOF)
        else:  # a half-close: it still listens
            self._eof = True
            self._shared.readiness.change(self._sock.fileno(), WRITE)

    def _close(self, kind: Kind) -> None:
        self._over = True
        close(self._shared, self._sock)
        self._shared.over(self._number, kind)


class Refusal:
    """A client whose upstream could not be reached: its request's head is read, then it is answered.

    The head is read within `HEAD_BYTES` and as long as the client lives. If it comes only later (a connection opened ahead
    of its request), the upstream is tried again first: `retry` then takes the untouched socket back.
    """

    __slots__ = ("_answer", "_head", "_number", "_over", "_reason", "_retry", "_shared", "_since", "_sock")

    def __init__(
        self,
        shared: Shared,
        number: int,
        sock: socket.socket,
        reason: str,
        answer: Callable[[bytes, str], bytes],
        retry: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._number = number
        self._sock = sock
        self._reason = reason
        self._answer = answer
        self._retry = retry
        self._head = bytearray()
        self._since = shared.loop.time()
        self._over = False
        shared.connections[number] = self
        shared.readiness.watch(sock.fileno(), self, READ)

    def ready(self, events: int) -> None:
        if self._over:
            return
        if not self._head and self._shared.loop.time() - self._since > _AGAIN_S:
            self._over = True
            self._shared.readiness.change(self._sock.fileno(), 0)
            self._retry()
            return
        try:
            size = self._sock.recv_into(self._shared.buffer, HEAD_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(Kind.CLIENT_RESET)
            return
        t_ns = time.monotonic_ns()
        data = self._shared.view[:size]
        if size:
            self._shared.tap.add(Kind.CLIENT_DATA, self._number, t_ns, len(self._head), 0, data)
            self._head += data
            if b"\r\n\r\n" not in self._head and b"\n\n" not in self._head and len(self._head) < HEAD_BYTES:
                return
        elif not self._head:
            self._end(Kind.CLIENT_EOF)
            return
        else:
            self._shared.tap.add(Kind.CLIENT_EOF, self._number, t_ns, len(self._head), 0)
        self._speak(t_ns)

    def failed(self) -> None:
        self.end(gently=False)

    def end(self, *, gently: bool) -> None:
        self._end(Kind.SHUTDOWN)

    def _speak(self, t_ns: int) -> None:
        self._over = True
        words = self._answer(bytes(self._head), self._reason)
        self._shared.tap.add(Kind.REFUSED, self._number, t_ns, 0, 0, self._reason.encode())
        self._shared.tap.add(Kind.UPSTREAM_DATA, self._number, t_ns, 0, 0, words)
        Farewell(self._shared, self._number, self._sock, words)

    def _end(self, kind: Kind) -> None:
        self._over = True
        close(self._shared, self._sock)
        self._shared.over(self._number, kind)
