"""Chunked transfer coding, read by llhttp: the body's bytes, and exactly where it ends.

httptools does not say at which byte a message ended, and goes on into the next one. An end is always the last byte of a
CRLF CRLF, so each of those is fed as the end of a piece of its own: then the end is a piece's end.
"""

from __future__ import annotations

import re

import httptools

__all__ = ["Chunks", "ChunksBroken", "begins_with_chunk"]

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_NOTHING = bytes(65536)
_MAX_BRIDGE = 1 << 30
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")

ChunksBroken = httptools.HttpParserError


class End:
    """llhttp's callbacks. `done`: the last chunk and its trailers are complete.

    `on_body` is the list's own append: no Python frame per chunk (0.1 µs of 0.25).
    """

    __slots__ = ("done", "on_body")

    def __init__(self, pieces: list[bytes]) -> None:
        self.on_body = pieces.append
        self.done = False

    def on_message_complete(self) -> None:
        self.done = True


class Chunks:
    """One chunked body, at any cut. Trailers and chunk extensions are passed over; nothing is kept but `pieces`."""

    __slots__ = ("end", "feed_whole", "pieces")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []  # the taker empties it
        self.end = End(self.pieces)  # apart, so that the parser and this are no cycle
        self.feed_whole = httptools.HttpResponseParser(self.end).feed_data
        """For bytes in which no body can end: they begin with no line break and hold no CRLF CRLF."""
        self.feed_whole(_HEAD)

    def feed(self, data: bytes) -> int:
        """Take bytes of the body; answer how many belonged to it (all, unless it ended). `data` is not empty.
        Raises ChunksBroken where this is no chunked coding; what was read before stands in `pieces`."""
        if data[0] > 13:
            mark = data.find(b"\r\n\r\n")
            if mark < 0 or mark + 4 == len(data):
                self.feed_whole(data)
                return len(data)
        return self._feed_apart(data)

    def _feed_apart(self, data: bytes) -> int:
        size = len(data)
        at = 0
        while at < size:
            if at < 3:  # an end that began in the bytes before
                stop = at + 1
            else:
                mark = data.find(b"\r\n\r\n", at - 3)
                stop = size if mark < 0 else max(mark + 4, at + 1)
            self.feed_whole(data[at:stop])
            at = stop
            if self.end.done:
                break
        return at

    def bridge(self, n_bytes: int) -> bool:
        """Go on behind `n_bytes` that were not copied. True when they lay wholly inside one chunk: llhttp is shown zeros,
        which are sound as a chunk's content and as nothing else. False: the place is lost."""
        if n_bytes > _MAX_BRIDGE:
            return False
        try:
            while n_bytes > 0:
                self.feed_whole(_NOTHING[:n_bytes])
                n_bytes -= len(_NOTHING)
        except ChunksBroken:
            return False
        finally:
            self.pieces.clear()
        return True


def begins_with_chunk(data: bytes) -> bool:
    """Does `data` begin with a whole chunk? Then a lost place is found again: length, content and CRLF must agree."""
    match = _CHUNK.match(data)
    if match is None:
        return False
    size = int(match[1], 16)
    end = match.end() + size
    return data[end : end + 2] == b"\r\n"
