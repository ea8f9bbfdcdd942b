"""Where an answer can be ended cleanly: follows HTTP/1.1 framing, just enough to know each response's chunk boundaries.

Only the guard uses it, so only then does a relay look into bytes at all. It is strict: whatever it does not understand
completely makes it `lost`, for the rest of that connection, and then nothing is ever cut there. It keeps no body.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto
from typing import Literal, TypeAlias

__all__ = ["Follower", "Requests", "Responses"]

_MAX_HEAD_BYTES = 256 * 1024
_MAX_LINE_BYTES = 4 * 1024
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [^ \r\n]+ HTTP/1\.[01]\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?\r\n")

Body: TypeAlias = Literal["none", "chunked", "close", "lost"] | int


class _State(Enum):
    HEAD = auto()
    LENGTH = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    UNTIL_CLOSE = auto()
    LOST = auto()


class Follower:
    """One direction of a connection. `index` is the number (from 0) of the message that is being followed or comes next."""

    def __init__(self) -> None:
        self.index = 0
        self._state = _State.HEAD
        self._held = bytearray()  # of a head, a chunk-size line, a chunk's end or a trailer: what has come so far
        self._left = 0  # bytes of a body or chunk that are still to come

    @property
    def lost(self) -> bool:
        return self._state is _State.LOST

    def at_boundary(self, index: int) -> bool:
        """Is this message's next byte the first of a chunk's size? There a chunk of ours can stand."""
        return self.index == index and self._state is _State.CHUNK_SIZE and not self._held

    def unfit(self, index: int) -> bool:
        """Will no boundary of this message ever come (again)? Over, not chunked, or not understood."""
        not_chunked = self.index == index and self._state in (_State.LENGTH, _State.UNTIL_CLOSE)
        return self.lost or self.index > index or not_chunked

    def feed(self, data: bytes, cut_in: int | None = None) -> int | None:
        """Follow `data`. With `cut_in`: the offset of the first boundary in that message, beyond which nothing was followed;
        the last chunk's own boundary is none (that message ends by itself). None: all was followed."""
        offset = 0
        while True:
            if cut_in is not None and self.at_boundary(cut_in) and data[offset : offset + 1] != b"0":
                return offset
            if offset >= len(data) or self._state in (_State.LOST, _State.UNTIL_CLOSE):
                return None
            offset = self._step(data, offset)

    def _step(self, data: bytes, offset: int) -> int:
        """Follow one element, or what is there of it; the offset behind it."""
        if self._state in (_State.LENGTH, _State.CHUNK):
            taken = min(self._left, len(data) - offset)
            self._left -= taken
            if not self._left:
                if self._state is _State.LENGTH:
                    self._next_message()
                else:
                    self._state = _State.CHUNK_END
            return offset + taken
        if self._state is _State.HEAD:
            return self._head(data, offset)
        end = data.find(b"\n", offset) + 1
        self._held += data[offset : end or None]
        if not end:
            if len(self._held) > _MAX_LINE_BYTES:
                self._lose()
            return len(data)
        line = bytes(self._held)
        self._held.clear()
        if self._state is _State.CHUNK_SIZE:
            self._chunk_size(line)
        elif self._state is _State.CHUNK_END:
            self._state = _State.CHUNK_SIZE if line == b"\r\n" else _State.LOST
        elif line == b"\r\n":
            self._next_message()
        elif not _FIELD.fullmatch(line):
            self._lose()
        return end

    def _head(self, data: bytes, offset: int) -> int:
        before = len(self._held)
        self._held += data[offset : offset + _MAX_HEAD_BYTES]
        end = self._held.find(b"\r\n\r\n", max(0, before - 3)) + 4
        if end < 4:
            if len(self._held) > _MAX_HEAD_BYTES:
                self._lose()
            return min(len(data), offset + _MAX_HEAD_BYTES)
        head = bytes(self._held[: end - 2])
        self._held.clear()
        line, fields = head[: head.index(b"\n") + 1], head[head.index(b"\n") + 1 :]
        self._begin(self._body(line, fields))
        return offset + end - before

    def _begin(self, body: Body) -> None:
        if body == "chunked":
            self._state = _State.CHUNK_SIZE
        elif body == "close":
            self._state = _State.UNTIL_CLOSE
        elif body == "lost":
            self._lose()
        elif body == "none" or body == 0:
            self._next_message()
        else:
            self._state, self._left = _State.LENGTH, body

    def _body(self, line: bytes, fields: bytes) -> Body:
        raise NotImplementedError

    def _chunk_size(self, line: bytes) -> None:
        found = _CHUNK_SIZE.fullmatch(line)
        if not found:
            self._lose()
        elif size := int(found[1], 16):
            self._state, self._left = _State.CHUNK, size
        else:
            self._state = _State.TRAILER

    def _next_message(self) -> None:
        self._state = _State.HEAD
        self.index += 1

    def _lose(self) -> None:
        self._state = _State.LOST
        self._held.clear()


class Requests(Follower):
    """From client to upstream; `methods` are those whose final responses have not begun."""

    def __init__(self) -> None:
        super().__init__()
        self.methods: deque[bytes] = deque()

    def _body(self, line: bytes, fields: bytes) -> Body:
        found = _REQUEST_LINE.fullmatch(line)
        framing = _framing(fields)
        if not found or framing in ("lost", "close"):
            return "lost"
        self.methods.append(found[1])
        return framing


class Responses(Follower):
    """From upstream to client. Interim responses (1xx) are passed over and not counted."""

    def __init__(self, requests: Requests) -> None:
        super().__init__()
        self._requests = requests

    def _body(self, line: bytes, fields: bytes) -> Body:
        found = _STATUS_LINE.fullmatch(line)
        if not found:
            return "lost"
        status = int(found[1])
        if status == 101:
            return "lost"
        if status < 200:
            self.index -= 1  # "none" counts it
            return "none"
        if not self._requests.methods:  # an answer to nothing that we understood
            return "lost"
        method = self._requests.methods.popleft()
        if method == b"CONNECT":
            return "lost"
        if method == b"HEAD" or status in (204, 304):
            return "none"
        framing = _framing(fields)
        return "close" if framing == "none" else framing


def _framing(fields: bytes) -> Body:
    """How a message's body is delimited (RFC 9112 section 6.3), "none" without any word on it; doubt is "lost"."""
    offset = 0
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    while offset < len(fields):
        field = _FIELD.match(fields, offset)
        if not field:
            return "lost"
        name = field[1].lower()
        if name == b"content-length":
            lengths.add(field[2])
        elif name == b"transfer-encoding":
            codings.append(field[2].lower())
        offset = field.end()
    if codings:
        return "chunked" if codings == [b"chunked"] and not lengths else "lost"
    if not lengths:
        return "none"
    length = lengths.pop()
    return int(length) if not lengths and re.fullmatch(rb"[0-9]{1,18}", length) else "lost"
