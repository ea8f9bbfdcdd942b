"""When things happen: timers exact to some 50 µs that do not drift, and wall-clock stamps with nanoseconds.

asyncio and uvloop round their timers to the millisecond that epoll counts in, which alone would put a millisecond of
jitter on every simulated token. On Linux one timerfd (armed for the earliest deadline, absolute, monotonic) serves all
streams instead; elsewhere (kqueue is exact by itself) the loop's own timers do. Nothing here waits busily.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from heapq import heappop, heappush

__all__ = ["EARLY_NS", "Deadline", "Metronome", "WallClock", "rfc3339"]

EARLY_NS = 20_000
"""Deadlines this near are served in the same wake-up: another one would cost as much as it gains."""

_NONBLOCK, _CLOEXEC, _ABSOLUTE = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0, getattr(os, "O_CLOEXEC", 0), 1


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class Deadline:
    """A call that is due; `cancel()` takes it back."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None] | None) -> None:
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class Metronome:
    """Calls back at absolute monotonic nanoseconds. One per event loop; `close()` gives its descriptor back."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._heap: list[tuple[int, int, Deadline]] = []
        self._serial = 0
        self._armed_ns: int | None = None
        self._serving = self._closed = False
        self._fallback: asyncio.TimerHandle | None = None
        self._fd = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                self._libc = ctypes.CDLL(None, use_errno=True)
                self._fd = int(self._libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC))
                self._spec = _Itimerspec()
                self._spec_ref = ctypes.byref(self._spec)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._rang)

    def at(self, t_ns: int, callback: Callable[[], None]) -> Deadline:
        """Call `callback` once the monotonic clock shows `t_ns` (a past time: in the next wake-up)."""
        deadline = Deadline(callback)
        if self._closed:
            return deadline  # never comes: the server stops
        self._serial += 1
        heappush(self._heap, (t_ns, self._serial, deadline))
        if not self._serving:
            self._arm()
        return deadline

    async def until(self, t_ns: int) -> None:
        """Sleep until then. Cancelling the sleeper leaves nothing behind."""
        if t_ns <= time.monotonic_ns():
            await asyncio.sleep(0)
            return
        woken = self._loop.create_future()
        deadline = self.at(t_ns, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            deadline.cancel()

    async def sleep(self, ns: float) -> None:
        await self.until(time.monotonic_ns() + int(ns))

    def close(self) -> None:
        self._closed = True
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._fallback is not None:
            self._fallback.cancel()
        self._heap.clear()

    def _arm(self) -> None:
        if not self._heap or self._heap[0][0] == self._armed_ns:
            return
        due = self._armed_ns = max(1, self._heap[0][0])
        if self._fd >= 0:
            self._spec.value.seconds, self._spec.value.nanoseconds = divmod(due, 1_000_000_000)
            self._libc.timerfd_settime(self._fd, _ABSOLUTE, self._spec_ref, None)
        else:
            if self._fallback is not None:
                self._fallback.cancel()
            self._fallback = self._loop.call_at(due / 1e9, self._serve)

    def _rang(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._serve()

    def _serve(self) -> None:
        self._armed_ns = None
        self._serving = True  # callbacks that ask for more need not arm the timer each
        heap = self._heap
        try:
            while heap and heap[0][0] <= time.monotonic_ns() + EARLY_NS:
                callback = heappop(heap)[2].callback
                if callback is not None:
                    callback()
        finally:
            self._serving = False
            self._arm()


class WallClock:
    """The wall clock at a monotonic instant. Read once, so that stamps of one stream never step backwards."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def unix_ns(self, monotonic_ns: int) -> int:
        return monotonic_ns + self._offset_ns

    def stamp(self, monotonic_ns: int) -> str:
        return rfc3339(monotonic_ns + self._offset_ns)


_second = (-1, "")


def rfc3339(unix_ns: int) -> str:
    """Go's RFC3339Nano in UTC: trailing zeros of the fraction are dropped, the fraction too when it is zero."""
    global _second  # one formatted second is shared by every record in it: strftime costs more than all the rest
    seconds, fraction = divmod(unix_ns, 1_000_000_000)
    known, text = _second
    if seconds != known:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        _second = (seconds, text)
    if not fraction:
        return text + "Z"
    return f"{text}.{fraction:09d}".rstrip("0") + "Z"
