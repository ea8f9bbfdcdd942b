"""Which sockets can be read, written or are dead: one kernel queue for all of a relay's sockets, inside the event loop.

Why not the loop's own transports and readers:

- A transport whose write fails throws away what the peer had sent before (an early answer to an upload, then a reset): the
  client would see less than directly. Here reading and writing one socket fail apart from each other.
- A loop does not look at a socket that is not being read or written, so a reset of a paused or half-closed peer would wait.
  Here a socket stays in the queue until it is closed, and death is always reported (level-triggered while it is read,
  edge-triggered, so once, while it is not).

`RelayLoop` sleeps in this queue; any other asyncio loop watches its descriptor and calls `Readiness.run`. On Linux it is
epoll, on macOS and the BSDs kqueue.
"""

from __future__ import annotations

import select
import sys
import traceback
from collections.abc import Callable
from typing import Protocol

__all__ = ["GONE", "READ", "WRITE", "Readiness", "Watcher"]

READ = 0x001  # EPOLLIN
WRITE = 0x004  # EPOLLOUT
GONE = 0x018  # EPOLLERR | EPOLLHUP: reset, or both directions shut. Ask the socket which: this is a hint, not a fact.


class Watcher(Protocol):
    def ready(self, events: int) -> None:
        """Some of READ, WRITE, GONE. May be spurious; must not open descriptors (use `Readiness.later`)."""

    def failed(self) -> None:
        """`ready` raised, which is a mistake of ours: end what this socket belongs to, so that it costs no other."""


class Readiness:
    """All watched sockets. Not thread-safe; the one user is the loop's thread."""

    def __init__(self) -> None:
        self._queue = _Queue()
        self._watchers: dict[int, Watcher] = {}
        self._later: list[Callable[[], None]] = []
        self.guests = 0  # of the watched, those that belong to the loop itself; not counted
        self.failures = 0  # exceptions out of watchers

    def __len__(self) -> int:
        return len(self._watchers) - self.guests

    def fileno(self) -> int:
        return self._queue.fileno()

    def watch(self, fd: int, watcher: Watcher, interest: int) -> None:
        """Start watching, or hand a watched socket to another watcher. With interest 0 only the socket's death is told."""
        if fd in self._watchers:
            self._queue.change(fd, interest)
        else:
            self._queue.add(fd, interest)
        self._watchers[fd] = watcher

    def change(self, fd: int, interest: int) -> None:
        self._queue.change(fd, interest)

    def forget(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed."""
        if self._watchers.pop(fd, None) is not None:
            self._queue.remove(fd)

    def later(self, call: Callable[[], None]) -> None:
        """Call this once the batch is worked through. Whoever opens a descriptor does it there: a number that is closed and
        used again within one batch would get the old socket's events."""
        self._later.append(call)

    def run(self, patience_s: float | None = 0) -> None:
        """Tell everybody what is ready now; wait for that so long (None: for ever). A loop that watches `fileno()` calls it
        without waiting."""
        watchers = self._watchers
        for fd, events in self._queue.poll(patience_s):
            watcher = watchers.get(fd)
            if watcher is not None:
                try:
                    watcher.ready(events)
                except Exception:
                    self._count_failure()
                    watcher.failed()
        if self._later:
            calls, self._later = self._later, []
            for call in calls:
                try:
                    call()
                except Exception:
                    self._count_failure()

    def _count_failure(self) -> None:
        self.failures += 1
        if self.failures == 1:  # the first says enough; a thousand would fill the disk
            traceback.print_exc()

    def close(self) -> None:
        self._watchers.clear()
        self._queue.close()


if sys.platform == "linux":

    class _Queue:
        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno = self._epoll.fileno
            self.close = self._epoll.close

        def add(self, fd: int, interest: int) -> None:
            self._epoll.register(fd, interest or select.EPOLLET)

        def change(self, fd: int, interest: int) -> None:
            self._epoll.modify(fd, interest or select.EPOLLET)

        def remove(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def poll(self, patience_s: float | None) -> list[tuple[int, int]]:
            return self._epoll.poll(patience_s, 256)

else:

    class _Queue:
        """kqueue: a filter for each direction; end of file counts as death until the socket is asked."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self.fileno = self._kqueue.fileno
            self.close = self._kqueue.close
            self._known: set[int] = set()
            self._writes: set[int] = set()

        def add(self, fd: int, interest: int) -> None:
            self.change(fd, interest)

        def change(self, fd: int, interest: int) -> None:
            edge = 0 if interest & READ else select.KQ_EV_CLEAR
            # EV_CLEAR of a filter that stands cannot be changed: take it out and put it in again.
            changes = [select.kevent(fd, select.KQ_FILTER_READ, select.KQ_EV_DELETE)] if fd in self._known else []
            changes.append(select.kevent(fd, select.KQ_FILTER_READ, select.KQ_EV_ADD | edge))
            self._known.add(fd)
            if interest & WRITE and fd not in self._writes:
                changes.append(select.kevent(fd, select.KQ_FILTER_WRITE, select.KQ_EV_ADD))
                self._writes.add(fd)
            elif not interest & WRITE and fd in self._writes:
                changes.append(select.kevent(fd, select.KQ_FILTER_WRITE, select.KQ_EV_DELETE))
                self._writes.discard(fd)
            self._kqueue.control(changes, 0)

        def remove(self, fd: int) -> None:
            self._known.discard(fd)
            self._writes.discard(fd)  # the kernel forgets a descriptor's filters when it is closed

        def poll(self, patience_s: float | None) -> list[tuple[int, int]]:
            found = []
            for entry in self._kqueue.control(None, 256, patience_s):
                events = READ if entry.filter == select.KQ_FILTER_READ else WRITE
                if entry.flags & (select.KQ_EV_EOF | select.KQ_EV_ERROR):
                    events |= GONE
                found.append((entry.ident, events))
            return found
