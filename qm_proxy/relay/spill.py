"""Bytes that wait for the observer, outside of the relay's own memory: nameless files that live in the kernel's.

A request with pictures is tens of megabytes and arrives within milliseconds, faster than an observer can take it, and a stock
Linux gives a socket 200 KiB. To hold such a request whole without growing, the relay lets the kernel hold it.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque

__all__ = ["SEGMENT_BYTES", "Spill"]

SEGMENT_BYTES = 4 * 1024 * 1024


class _Segment:
    __slots__ = ("fd", "taken", "written")

    def __init__(self) -> None:
        self.fd = _nameless_file()
        self.written = 0
        self.taken = 0


class Spill:
    """A queue of bytes, at most `limit` of them. What is taken is freed segment by segment."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0
        self._segments: deque[_Segment] = deque()

    def put(self, data: bytes) -> bool:
        """All of `data` or, when there is no room, no memory or no descriptor, nothing: then False."""
        held = sum(segment.written for segment in self._segments)
        if held + len(data) > self.limit:
            return False
        try:
            if not self._segments or self._segments[-1].written >= SEGMENT_BYTES:
                self._segments.append(_Segment())
            segment = self._segments[-1]
            if os.pwrite(segment.fd, data, segment.written) != len(data):
                return False  # no memory for all of it: what was written is written over by the next
        except OSError:
            return False
        segment.written += len(data)
        self.waiting += len(data)
        return True

    def take(self, n: int) -> bytes:
        """The oldest bytes, at most n and at least one; only while `waiting`."""
        segment = self._segments[0]
        data = os.pread(segment.fd, min(n, segment.written - segment.taken), segment.taken)
        segment.taken += len(data)
        self.waiting -= len(data)
        if segment.taken == segment.written:
            os.close(segment.fd)
            self._segments.popleft()
        return data

    def clear(self) -> None:
        for segment in self._segments:
            os.close(segment.fd)
        self._segments.clear()
        self.waiting = 0


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("qm-proxy tap", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(buffering=0) as file:  # in the page cache, written to disk only under memory pressure
        return os.dup(file.fileno())
