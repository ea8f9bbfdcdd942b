"""The relay's parts in this process: a loop that is turned by hand, and pairs of connected sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from qm_proxy.relay.pipe import Kind, Reader
from qm_proxy.relay.process import new_loop
from qm_proxy.relay.readiness import Readiness
from qm_proxy.relay.splice import Shared
from qm_proxy.relay.tap import Tap


class Bench:
    """All that a connection needs. `turn` lets the loop run until a condition holds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.observer, pipe = socket.socketpair()
        pipe.setblocking(False)
        self.observer.setblocking(False)
        self.readiness = Readiness()
        self.tap = Tap(loop, pipe, 7)
        self.emptied = 0
        self.shared = Shared(loop, self.readiness, self.tap, self._last_gone)
        self._reader = Reader()
        self._sockets: list[socket.socket] = [self.observer, pipe]
        loop.add_reader(self.readiness.fileno(), self.readiness.run)

    def _last_gone(self) -> None:
        self.emptied += 1

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """(theirs, ours): a TCP connection; ours does not block."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        theirs.settimeout(10)
        self._sockets += [theirs, ours]
        return theirs, ours

    def turn(self, until: Callable[[], object] = lambda: True) -> None:
        async def turning() -> None:
            async with asyncio.timeout(10):
                await asyncio.sleep(0)
                while not until():  # noqa: ASYNC110 - sockets tell nobody
                    await asyncio.sleep(0.001)

        self.loop.run_until_complete(turning())

    def records(self) -> list[tuple[Kind, int, bytes]]:
        """(kind, connection, data) of everything copied since the last call."""
        self.tap.flush()
        found = []
        try:
            while data := self.observer.recv(1 << 20):
                for batch in self._reader.feed(data):
                    found += [(Kind(kind), number, data) for kind, number, _, _, _, data in batch.records()]
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        self.tap.close()
        self.loop.remove_reader(self.readiness.fileno())
        self.readiness.close()
        for sock in self._sockets:
            sock.close()


@pytest.fixture(params=["own", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = new_loop(request.param)
    yield made
    made.run_until_complete(made.shutdown_default_executor())
    made.close()


@pytest.fixture
def bench(loop: asyncio.AbstractEventLoop) -> Iterator[Bench]:
    made = Bench(loop)
    yield made
    made.close()
