"""A connection of the simulated server: requests in, one handler at a time, in order; the client's leaving noticed.

Rules that hold here (net/http/server.go of Go 1.24, and observed):

- Pipelined requests are answered one after the other.
- A client that leaves, or only half-closes, cancels the request at once: a stream is then ended cleanly, without its
  terminal record. After a half-close before the first byte the connection stays open and is never answered (here for
  `HALF_CLOSED_S`, then it is closed).
- What cannot be read as a request is answered 400, 417, 431, 501 or 505 as plain text, and the connection closed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable
from typing import Protocol, cast

from probes.sim.http import REASONS, UNREAD_LIMIT, Request, Response
from qm_proxy.tasks import spawn

__all__ = ["HALF_CLOSED_S", "Connection", "Handler"]

HEAD_LIMIT = 1 << 20
"""DefaultMaxHeaderBytes of net/http."""
HALF_CLOSED_S = 5.0


class Handler(Protocol):
    def __call__(self, request: Request, response: Response) -> Awaitable[None]: ...


class _Refused(Exception):
    """The bytes are not a request; args: status and text of net/http's own answer."""


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
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
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
        if self._transport is not None and not self._transport.is_closing():
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

    def stop(self) -> asyncio.Task[None] | None:
        """End now (the server stops): what is in flight is cut. Answers with the task that then ends."""
        if self._transport is not None:
            self._transport.abort()
        return self._serving

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
