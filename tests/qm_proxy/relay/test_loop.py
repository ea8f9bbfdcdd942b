"""The loop sleeps in the relay's queue and still does all that asyncio asks of a loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from qm_proxy.relay.loop import RelayLoop
from qm_proxy.relay.readiness import READ


@pytest.fixture
def loop() -> Iterator[RelayLoop]:
    made = RelayLoop()
    yield made
    made.close()


class Echo:
    """A watcher that sends back what it reads, and counts."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reads = 0

    def ready(self, events: int) -> None:
        self.reads += 1
        self.sock.send(self.sock.recv(100))

    def failed(self) -> None:
        raise AssertionError


def test_sockets_are_served_without_waking_asyncio(loop: RelayLoop) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    echo = Echo(far)
    assert len(loop.readiness) == 0  # its own self-pipe does not count
    loop.readiness.watch(far.fileno(), echo, READ)
    assert len(loop.readiness) == 1
    turns = 0
    run_once = loop._run_once  # type: ignore[attr-defined]

    def counted() -> None:
        nonlocal turns
        turns += 1
        run_once()

    loop._run_once = counted  # type: ignore[attr-defined]

    def talk() -> None:
        for _ in range(50):
            near.send(b"x")
            assert near.recv(10) == b"x"

    async def main() -> None:
        await loop.run_in_executor(None, talk)

    loop.run_until_complete(main())
    assert echo.reads == 50
    assert turns < 25  # the executor's news, not the sockets'
    loop.readiness.forget(far.fileno())
    near.close()
    far.close()


def test_a_timer_that_a_watcher_sets_is_kept_although_the_loop_was_asleep(loop: RelayLoop) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    done = loop.create_future()

    class Arms:
        def ready(self, events: int) -> None:
            far.recv(10)
            loop.call_later(0.001, done.set_result, "in time")

        def failed(self) -> None:
            raise AssertionError

    loop.readiness.watch(far.fileno(), Arms(), READ)

    async def main() -> str:
        near.send(b"x")
        return await asyncio.wait_for(done, 10)

    assert loop.run_until_complete(main()) == "in time"
    loop.readiness.forget(far.fileno())
    near.close()
    far.close()


def test_a_watcher_calls_soon(loop: RelayLoop) -> None:
    near, far = socket.socketpair()
    done = loop.create_future()

    class Calls:
        def ready(self, events: int) -> None:
            loop.readiness.forget(far.fileno())
            loop.call_soon(done.set_result, 7)

        def failed(self) -> None:
            raise AssertionError

    loop.readiness.watch(far.fileno(), Calls(), READ)
    near.send(b"x")
    assert loop.run_until_complete(asyncio.wait_for(done, 10)) == 7
    near.close()
    far.close()


def test_readers_writers_and_streams_of_asyncio(loop: RelayLoop) -> None:
    async def main() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read(1_000_000))[::-1])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"abc")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return answer

    assert loop.run_until_complete(main()) == b"cba"


def test_threads_and_signals_wake_it(loop: RelayLoop) -> None:
    seen = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, seen.set_result, "signal")

    async def main() -> tuple[int, str]:
        answer = await asyncio.to_thread(lambda: 42)
        os.kill(os.getpid(), signal.SIGUSR1)
        return answer, await asyncio.wait_for(seen, 10)

    assert loop.run_until_complete(main()) == (42, "signal")
    loop.remove_signal_handler(signal.SIGUSR1)
