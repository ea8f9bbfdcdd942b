"""An event loop whose sleep is the relay's own queue: one kernel call brings a socket's news straight to its watcher.

Under uvloop or plain asyncio the queue of `Readiness` is a descriptor inside the loop's own queue, so each wake-up costs two
kernel calls and a callback. Here asyncio's few descriptors (its self-pipe, the control line) are guests in the relay's queue
instead, and the loop is gone back to only for what is its own: a timer that is due, a callback, one of its descriptors.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any

from qm_proxy.relay.readiness import GONE, READ, WRITE, Readiness

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["RelayLoop"]


class _Guest:
    """A descriptor of asyncio's in the relay's queue."""

    __slots__ = ("_key", "_news")

    def __init__(self, key: selectors.SelectorKey, news: list[tuple[selectors.SelectorKey, int]]) -> None:
        self._key = key
        self._news = news

    def ready(self, events: int) -> None:
        seen = (selectors.EVENT_READ if events & (READ | GONE) else 0) | (selectors.EVENT_WRITE if events & (WRITE | GONE) else 0)
        if seen & self._key.events:
            self._news.append((self._key, seen & self._key.events))

    def failed(self) -> None: ...


class _Selector(selectors.BaseSelector):
    """What asyncio asks for its descriptors' news: works through the relay's queue until there is some, or something to do."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._news: list[tuple[selectors.SelectorKey, int]] = []
        self.asked_back = False  # a callback or timer was added: the loop must look again

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _descriptor(fileobj)
        if fd in self._keys:
            raise KeyError(f"descriptor {fd} is registered already")
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        interest = (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0)
        self._readiness.watch(fd, _Guest(key, self._news), interest)
        self._readiness.guests += 1
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        key = self._keys.pop(_descriptor(fileobj))
        self._readiness.forget(key.fd)
        self._readiness.guests -= 1
        return key

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        run, news = self._readiness.run, self._news
        self.asked_back = False
        due = None if timeout is None else time.monotonic() + timeout
        while True:
            run(timeout if timeout is None or timeout > 0 else 0)
            if news:
                found = [(key, events) for key, events in news if self._keys.get(key.fd) is key]
                news.clear()
                return found
            if self.asked_back:
                return []
            if due is not None:
                timeout = due - time.monotonic()
                if timeout <= 0:
                    return []


def _descriptor(fileobj: FileDescriptorLike) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


class RelayLoop(asyncio.SelectorEventLoop):
    """Made with its `readiness`, which the relay takes instead of one of its own."""

    def __init__(self) -> None:
        self.readiness = Readiness()
        self._news = _Selector(self.readiness)
        super().__init__(self._news)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        self._news.asked_back = True
        return super().call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._news.asked_back = True
        return super().call_at(when, callback, *args, context=context)

    def close(self) -> None:
        super().close()
        self.readiness.close()
