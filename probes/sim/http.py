"""One HTTP/1.1 connection, served as Go's net/http serves it: that is what makes the simulated bytes equal the real ones.

Rules that hold here (net/http/server.go of Go 1.24; confirmed by captures where there is one):

- Headers leave with the first flush. A body that is finished within 2 048 bytes gets `Content-Length`, any other is
  chunked, one chunk a flush; HTTP/1.0 clients get a body delimited by the close.
- Handler headers are sorted by name; Date and the framing follow: `Content-Type, Date, Content-Length`.
- Requests of one connection are answered one after the other, in order (pipelining).
- A client that leaves, or only half-closes, cancels the request at once. After a half-close before the first byte the
  connection is kept open and never answered, as the real server does (bounded here by `HALF_CLOSED_S`).
- 100 Continue is sent when the handler first reads the body, and only then.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Protocol, TypeAlias

from qm_proxy.tasks import spawn

__all__ = ["HALF_CLOSED_S", "Connection", "Handler", "Request", "Response"]

HEAD_LIMIT = 1 << 20
"""DefaultMaxHeaderBytes of net/http."""
BEFORE_CHUNKING = 2048
"""What the server holds back while it may still learn the body's length."""
UNREAD_LIMIT = 256 << 10
"""An unread request body up to this is drained so that the connection can be used again."""
HALF_CLOSED_S = 5.0

REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 204: "No Content", 301: "Moved Permanently", 307: "Temporary Redirect",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    413: "Request Entity Too Large", 417: "Expectation Failed", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}  # fmt: skip


class Handler(Protocol):
    def __call__(self, request: Request, response: Response) -> Awaitable[None]: ...


Written: TypeAlias = Callable[[int], None]
"""Called with the monotonic ns at which the bytes were given to the socket."""


class _Refused(Exception):
    """The bytes are not a request; args: status and text of net/http's own answer."""


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

    def __init__(self, connection: Connection, method: str, target: str, headers: list[tuple[str, str]], t_ns: int) -> None:
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

    def __init__(self, connection: Connection, request: Request) -> None:
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
                self._send(data, None)
                return
            self._buffer += data[:space]
            data = data[space:]
            self.flush()
            space = BEFORE_CHUNKING
        self._buffer += data

    def flush(self, written: Written | None = None) -> None:
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._send(data, written)
        elif not self.began:
            self._send(b"", written)

    def stream(self, data: bytes, written: Written | None = None) -> None:
        """One record in one flush: the hot path."""
        if self.began and self._chunked and not self._buffer and len(data) > 0 and not self._connection.closed:
            self._put(b"%x\r\n%b\r\n" % (len(data), data), written)
            return
        self.write(data)
        self.flush(written)

    def together(self, records: list[bytes], written: Written | None = None) -> None:
        """Several records, each its own chunk, given to the socket in one write: what a coalesced read looks like."""
        if self.began and self._chunked and not self._buffer:
            self._put(b"".join(b"%x\r\n%b\r\n" % (len(r), r) for r in records), written)
            return
        for record in records:
            self.stream(record, written)

    def finish(self) -> None:
        """End the body cleanly."""
        if self.ended:
            return
        if not self.began:
            body = bytes(self._buffer)
            self._buffer.clear()
            self._put(self._head(len(body)) + (b"" if self._request.method == "HEAD" else body), None)
        else:
            self.flush()
            if self._chunked:
                self._put(b"0\r\n\r\n", None)
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
            self._to_socket(data, written)

    @property
    def drained(self) -> bool:
        return not self._backlog

    def _send(self, data: bytes, written: Written | None) -> None:
        head = b""
        if not self.began:
            head = self._head(None)
            self.began = True
        if self._request.method == "HEAD":
            data = b""
        elif self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if head or data:
            self._put(head + data, written)

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

    def _put(self, data: bytes, written: Written | None) -> None:
        if self._connection.paused or self._backlog:
            self._backlog.append((data, written))  # the client does not read: as the real runner, go on and queue
        else:
            self._to_socket(data, written)

    def _to_socket(self, data: bytes, written: Written | None) -> None:
        self._connection.to_socket(data)
        if written is not None:
            written(time.monotonic_ns())


class Connection(asyncio.Protocol):
    """Reads requests, runs the handler for one at a time, notices the client's leaving."""

    def __init__(self, handler: Handler, registry: set[Connection], n: int) -> None:
        self._handler = handler
        self._registry = registry
        self.n = n
        self._transport: asyncio.Transport | None = None
        self._bytes = bytearray()
        self._reading: Request | None = None  # whose body is still coming in
        self._remaining = 0  # bytes of that body, or of its current chunk, that are still to come
        self._chunked = False
        self._trailer = False  # behind the last chunk's size line
        self._serving: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._response: Response | None = None
        self._eof = False
        self._reading_paused = False
        self._hold: asyncio.TimerHandle | None = None
        self.paused = False
        self.closed = False

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._registry.add(self)

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        self._advance()

    def eof_received(self) -> bool:
        self._eof = True
        if self._serving is None:
            return False
        response = self._response
        began = response is not None and response.began
        self._client_left()
        if began:
            return True  # the cancelled handler ends the body cleanly, then the connection is closed
        self._hold = asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._shut)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._registry.discard(self)
        if self._hold is not None:
            self._hold.cancel()
        self._client_left()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._response is not None:
            self._response.resume()
            self._finished()

    # --- for Request and Response -------------------------------------------------------------------------------------

    def to_socket(self, data: bytes) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(data)

    def continue_100(self) -> None:
        self.to_socket(b"HTTP/1.1 100 Continue\r\n\r\n")

    def body_taken(self, request: Request) -> None:
        if self._reading_paused and request.held < UNREAD_LIMIT:
            self._pause_reading(False)
            self._advance()

    def drop(self, *, reset: bool) -> None:
        if self._transport is None:
            return
        if reset:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    def stop(self) -> None:
        """End now (the server stops): what is in flight is cut."""
        if self._transport is not None:
            self._transport.abort()

    # --- one request after the other ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Take from the buffer what can be taken: body bytes of the current request, then the next head."""
        try:
            if self._reading is not None:
                self._read_body(self._reading)
            if self._reading is None and self._serving is None and self._bytes:
                self._read_head()
        except _Refused as refused:
            self._refuse(*refused.args)
        if len(self._bytes) > HEAD_LIMIT and self._reading is None:
            self._pause_reading(True)  # pipelined far ahead: wait

    def _read_head(self) -> None:
        received_ns = time.monotonic_ns()
        while self._bytes[:2] == b"\r\n":  # RFC 9112, 2.2: empty lines before a request are passed over
            del self._bytes[:2]
        end = self._bytes.find(b"\r\n\r\n")
        if end < 0 or end > HEAD_LIMIT + 4096:
            if len(self._bytes) > HEAD_LIMIT + 4096:
                raise _Refused(431, "")
            return
        head = bytes(self._bytes[:end]).decode("latin-1")
        del self._bytes[: end + 4]
        request_line, *lines = head.split("\r\n")
        parts = request_line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/"):
            raise _Refused(400, "")
        if parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise _Refused(505, ": unsupported protocol version")
        headers: list[tuple[str, str]] = []
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise _Refused(400, "")
            headers.append((name, value.strip(" \t")))
        target = parts[1]
        if "://" in target.partition("?")[0]:  # absolute-form: the origin is the Host
            target = "/" + target.partition("://")[2].partition("/")[2]
        request = Request(self, parts[0], target, headers, received_ns)
        request.http10 = parts[2] == "HTTP/1.0"
        if request.header("host") is None and not request.http10:
            raise _Refused(400, ": missing required Host header")
        expect = request.header("expect")
        if expect is not None and expect.lower() != "100-continue":
            raise _Refused(417, "")
        request.expects = expect is not None
        coding = (request.header("transfer-encoding") or "").lower()
        if coding and coding != "chunked":
            raise _Refused(501, ": Unsupported transfer encoding")
        length = request.header("content-length") or "0"
        if not length.isascii() or not length.isdigit():
            raise _Refused(400, ": bad Content-Length")
        self._reading, self._remaining, self._chunked, self._trailer = request, 0 if coding else int(length), bool(coding), False
        self._read_body(request)
        self._start(request)

    def _read_body(self, request: Request) -> None:
        while self._reading is request:
            if self._remaining:
                if not self._bytes:
                    break
                taken = bytes(self._bytes[: self._remaining])
                del self._bytes[: len(taken)]
                self._remaining -= len(taken)
                request.feed(taken)
            elif not self._chunked or (self._chunked and self._next_chunk()):
                self._reading = None
                request.end()
            elif not self._remaining:
                break
        if request.held > UNREAD_LIMIT and self._reading is request:
            self._pause_reading(True)

    def _next_chunk(self) -> bool:
        """Read a size line into `_remaining`; True when the body (trailer included) is over."""
        while True:
            line, newline, _ = bytes(self._bytes[:4096]).partition(b"\r\n")
            if not newline:
                if len(self._bytes) > 4096:
                    raise _Refused(400, "")
                return False
            if self._trailer:
                del self._bytes[: len(line) + 2]
                if not line:
                    return True
                continue
            if not line:  # the line end behind a chunk's data
                del self._bytes[:2]
                continue
            try:
                self._remaining = int(line.partition(b";")[0], 16)
            except ValueError:
                raise _Refused(400, "") from None
            del self._bytes[: len(line) + 2]
            if self._remaining:
                return False
            self._trailer = True

    def _start(self, request: Request) -> None:
        self._request = request
        self._response = Response(self, request)
        self._serving = spawn(self._serve(request, self._response), name="simulated request")

    async def _serve(self, request: Request, response: Response) -> None:
        try:
            await self._handler(request, response)
        except asyncio.CancelledError:
            if self.closed or not response.began:
                self._serving = None
                return  # nobody is there, or a half-closed client that will not be answered
            response.close = True
        if request.expects or (not request.ended and request.held > UNREAD_LIMIT):
            response.close = True
        if not response.ended:
            response.finish()
        self._finished()

    def _finished(self) -> None:
        """Go on with the next request once this answer has left."""
        response, request = self._response, self._request
        if response is None or request is None or not response.ended or not response.drained:
            return
        self._response = self._request = self._serving = None
        if response.close or self._eof:
            self._shut()
            return
        if self._reading is request:  # the rest of an unread body is drained
            spawn(self._drain(request), name="drain a request")
            return
        self._pause_reading(False)
        self._advance()

    async def _drain(self, request: Request) -> None:
        async for _ in request.chunks():
            pass
        self._advance()

    def _client_left(self) -> None:
        if self._request is not None and self._request.left_ns is None and self._serving is not None:
            self._request.left_ns = time.monotonic_ns()
            self._serving.cancel()

    def _refuse(self, status: int, detail: str) -> None:
        text = f"{status} {REASONS[status]}"
        head = f"HTTP/1.1 {text}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n{text}{detail}"
        self.to_socket(head.encode())
        self._bytes.clear()
        self._shut()

    def _shut(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _pause_reading(self, pause: bool) -> None:
        if self._transport is None or self.closed or self._eof or pause == self._reading_paused:
            return
        self._reading_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
