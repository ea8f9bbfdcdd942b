"""A request as it comes in and its answer as it goes out, framed as Go's net/http does: that makes the bytes equal.

Rules that hold here (net/http/server.go of Go 1.24; confirmed by captures where there is one):

- Headers leave with the first flush. A body that is finished within 2 048 bytes gets `Content-Length`, any other is
  chunked, one chunk a flush; HTTP/1.0 clients get a body delimited by the close.
- Handler headers are sorted by name; Date and the framing follow: `Content-Type, Date, Content-Length`.
- 100 Continue is sent when the handler first reads the body, and only then.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from typing import Protocol, TypeAlias

__all__ = ["REASONS", "UNREAD_LIMIT", "Link", "Request", "Response"]

BEFORE_CHUNKING = 2048
"""What the server holds back while it may still learn the body's length."""
UNREAD_LIMIT = 256 << 10
"""An unread request body up to this is drained so that the connection can be used again."""

REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 204: "No Content", 301: "Moved Permanently", 307: "Temporary Redirect",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    413: "Request Entity Too Large", 417: "Expectation Failed", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}  # fmt: skip


Written: TypeAlias = Callable[[int], None]
"""Called with the monotonic ns at which the bytes were given to the socket."""


class Link(Protocol):
    """What request and response need of their connection."""

    n: int
    paused: bool  # the client does not read

    def to_socket(self, data: bytes) -> None: ...

    def continue_100(self) -> None: ...

    def body_taken(self, request: Request) -> None: ...

    def drop(self, *, reset: bool) -> None: ...


class Request:
    """One request. The head is there; the body comes while it is read."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_ended",
        "_held",
        "_waiter",
        "connection_n",
        "expects",
        "headers",
        "http10",
        "left_ns",
        "method",
        "n",
        "t_ns",
        "target",
    )  # fmt: skip

    def __init__(self, connection: Link, method: str, target: str, headers: list[tuple[str, str]], t_ns: int) -> None:
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self.method = method
        self.target = target
        self.headers = headers
        self.http10 = False
        self.expects = False
        self.t_ns = t_ns  # head complete, monotonic
        self.left_ns: int | None = None  # when the client's leaving was noticed
        self.connection_n = connection.n
        self.n = -1

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """First value of a header, by lower-case name."""
        return next((v for k, v in self.headers if k.lower() == name), None)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, piece by piece, as it arrives; the peer is held back while nobody reads."""
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._held -= len(chunk)
                self._connection.body_taken(self)
                yield chunk
            if self._ended:
                return
            if self.expects:
                self.expects = False
                self._connection.continue_100()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    @property
    def held(self) -> int:
        return self._held

    @property
    def ended(self) -> bool:
        return self._ended

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None


class Response:
    """The answer being written. `headers` may be changed until the first flush."""

    __slots__ = ("_backlog", "_buffer", "_chunked", "_connection", "_request", "began", "close", "ended", "headers", "status")

    def __init__(self, connection: Link, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._buffer = bytearray()
        self._backlog: deque[tuple[bytes, Written | None]] = deque()
        self._chunked = False
        self.status = 200
        self.headers: dict[str, str | list[str]] = {}
        self.began = False
        self.ended = False
        self.close = request.http10 or (request.header("connection") or "").lower() == "close"

    def write(self, data: bytes) -> None:
        """Buffer as Go's 2 048-byte writer does: what overflows it leaves as a chunk of its own."""
        space = BEFORE_CHUNKING - len(self._buffer)
        while len(data) > space:
            if not self._buffer:
                self._send(data)
                return
            self._buffer += data[:space]
            data = data[space:]
            self.flush()
            space = BEFORE_CHUNKING
        self._buffer += data

    def flush(self) -> None:
        if self._buffer or not self.began:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._send(data)

    def stream(self, data: bytes) -> None:
        """One record in one flush: the hot path."""
        if self._chunked and not self._buffer and data:
            self._put(b"%x\r\n%b\r\n" % (len(data), data))
            return
        self.write(data)
        self.flush()

    def framed(self, chunks: bytes) -> None:
        """Several records, already framed as chunks, in one write: what a coalesced read looks like."""
        self._put((b"" if self.began else self._head(None)) + chunks)

    @property
    def flowing(self) -> bool:
        """Nothing waits for the client to read."""
        return not self._backlog

    def when_written(self, written: Written) -> None:
        """Call back once all that was written so far has gone to the socket."""
        self._backlog.append((b"", written))

    def finish(self) -> None:
        """End the body cleanly."""
        if self.ended:
            return
        if not self.began:
            body = bytes(self._buffer)
            self._buffer.clear()
            self._put(self._head(len(body)) + (b"" if self._request.method == "HEAD" else body))
        else:
            self.flush()
            if self._chunked:
                self._put(b"0\r\n\r\n")
        self.ended = True

    def drop(self, *, reset: bool = False) -> None:
        """End abruptly: no last chunk, the connection closed (`reset`: with RST) as when the daemon dies."""
        self.ended = True
        self.close = True
        self._connection.drop(reset=reset)

    def resume(self) -> None:
        """The socket takes bytes again."""
        while self._backlog and not self._connection.paused:
            data, written = self._backlog.popleft()
            if data:
                self._connection.to_socket(data)
            if written is not None:
                written(time.monotonic_ns())

    @property
    def drained(self) -> bool:
        return not self._backlog

    def _send(self, data: bytes) -> None:
        head = b"" if self.began else self._head(None)
        if self._request.method == "HEAD":
            data = b""
        elif self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if head or data:
            self._put(head + data)

    def _head(self, length: int | None) -> bytes:
        """Status line and headers. `length` None: it is not known when the head must leave."""
        self.began = True
        bodiless = self.status in (204, 304) or self.status < 200
        lines = [f"HTTP/1.{0 if self._request.http10 else 1} {self.status} {REASONS.get(self.status, 'Unknown')}"]
        for name in sorted(self.headers):
            values = self.headers[name]
            lines += [f"{name}: {v}" for v in ([values] if isinstance(values, str) else values)]
        lines.append(f"Date: {formatdate(usegmt=True)}")
        if not bodiless:
            if length is not None:
                lines.append(f"Content-Length: {length}")
            elif self._request.http10:
                self.close = True
            elif self._request.method != "HEAD":
                self._chunked = True
        if self.close and not self._request.http10:
            lines.append("Connection: close")
        if self._chunked:
            lines.append("Transfer-Encoding: chunked")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _put(self, data: bytes) -> None:
        if self._backlog or self._connection.paused:
            self._backlog.append((data, None))  # the client does not read: as the real runner, go on and queue
        else:
            self._connection.to_socket(data)
