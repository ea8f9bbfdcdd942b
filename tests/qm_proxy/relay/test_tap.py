"""The copy never waits, is bounded, and says exactly what it lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from qm_proxy.relay.pipe import RECORD, Batch, Kind, Reader
from qm_proxy.relay.tap import BATCH_BYTES, BULK_BYTES, Tap

SMALL = b"s" * (BULK_BYTES - 1)
QUEUE_BYTES = 3_000_000


@pytest.fixture
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    observer, ours = socket.socketpair()
    for sock in (observer, ours):
        sock.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    yield observer, ours
    observer.close()
    ours.close()


@pytest.fixture
def tap(loop: asyncio.AbstractEventLoop, pipe: tuple[socket.socket, socket.socket]) -> Tap:
    return Tap(loop, pipe[1], 1, queue_bytes=QUEUE_BYTES)


def taken(observer: socket.socket, reader: Reader) -> list[Batch]:
    found = []
    try:
        while data := observer.recv(1 << 20):
            found += reader.feed(data)
    except BlockingIOError:
        pass
    return found


def turn(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    loop.run_until_complete(asyncio.sleep(seconds))


def test_nothing_to_send_arms_no_timer(tap: Tap) -> None:
    assert tap._timer is None
    tap.flush()
    assert tap._timer is None


def test_a_record_is_sent_by_the_timer(
    loop: asyncio.AbstractEventLoop, tap: Tap, pipe: tuple[socket.socket, socket.socket]
) -> None:
    tap.add(Kind.CLIENT_DATA, 5, 10, 20, 30, memoryview(b"hello"))
    assert taken(pipe[0], Reader()) == []
    turn(loop, 0.1)
    (batch,) = taken(pipe[0], Reader())
    assert list(batch.records()) == [(Kind.CLIENT_DATA, 5, 10, 20, 30, b"hello")]
    assert tap._timer is None
    assert tap.take_late_ns() >= 0
    assert tap.take_late_ns() == 0


def test_a_full_batch_is_sent_at_once(tap: Tap, pipe: tuple[socket.socket, socket.socket]) -> None:
    n = 0
    while (n + 1) * (RECORD.size + len(SMALL)) < BATCH_BYTES:
        tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
        n += 1
    assert taken(pipe[0], Reader()) == []
    tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
    (batch,) = taken(pipe[0], Reader())
    assert len(list(batch.records())) == n + 1


def test_what_a_full_pipe_loses_is_known_exactly(tap: Tap, pipe: tuple[socket.socket, socket.socket]) -> None:
    sent = 4000
    for n in range(sent):
        tap.add(Kind.UPSTREAM_DATA, n, 0, 0, 0, SMALL)
        assert tap.pending_bytes <= QUEUE_BYTES + BATCH_BYTES + 1000
    assert tap.dropped_batches > 0
    reader, batches = Reader(), []
    while found := taken(pipe[0], reader):
        batches += found
        tap.flush()
    tap.add(Kind.CLOSED, sent, 0, 0, 0)
    tap.flush()
    batches += taken(pipe[0], reader)
    assert reader.skipped_bytes == 0
    came = [record for batch in batches for record in batch.records()]
    last = batches[-1]
    assert len(came) - 1 + last.dropped_records == sent
    assert last.dropped_bytes == last.dropped_records * (RECORD.size + len(SMALL))
    assert last.sequence + 1 - len(batches) == last.dropped_batches == tap.dropped_batches
    assert [record[1] for record in came] == sorted(record[1] for record in came)


def test_under_pressure_the_bulk_goes_first(tap: Tap, pipe: tuple[socket.socket, socket.socket]) -> None:
    bulk = b"b" * 100_000
    for _ in range(100):
        tap.add(Kind.CLIENT_DATA, 1, 0, 0, 0, bulk)
        tap.add(Kind.UPSTREAM_DATA, 2, 0, 0, 0, b"token")
    assert tap.dropped_batches == 0
    reader, batches = Reader(), []
    while found := taken(pipe[0], reader):
        batches += found
        tap.flush()
    records = [record for batch in batches for record in batch.records()]
    assert sum(record[0] == Kind.UPSTREAM_DATA for record in records) == 100
    whole = sum(record[0] == Kind.CLIENT_DATA for record in records)
    skipped = [int.from_bytes(record[-1], "little") for record in records if record[0] == Kind.CLIENT_SKIPPED]
    assert 0 < whole < 100
    assert skipped == [len(bulk)] * (100 - whole)
    assert tap.skipped_bytes == sum(skipped)


def test_an_observer_that_comes_back_is_served_by_the_timer(
    loop: asyncio.AbstractEventLoop, tap: Tap, pipe: tuple[socket.socket, socket.socket]
) -> None:
    for _ in range(100):
        tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
    assert tap.pending_bytes > 0
    reader, n = Reader(), 0
    for _ in range(200):
        n += sum(len(list(batch.records())) for batch in taken(pipe[0], reader))
        if n == 100:
            break
        turn(loop, 0.02)
    assert n == 100
    assert tap.pending_bytes == 0


def test_what_waits_is_not_in_our_memory(tap: Tap, pipe: tuple[socket.socket, socket.socket]) -> None:
    for _ in range(300):
        tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
    assert tap.pending_bytes > 2_000_000
    assert len(tap._rest) + len(tap._batch) < 3 * BATCH_BYTES


def test_a_mistake_costs_a_batch_and_not_the_stream(tap: Tap, pipe: tuple[socket.socket, socket.socket]) -> None:
    tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, b"lost with it")
    tap.add(Kind.UPSTREAM_DATA, -1, 0, 0, 0, b"no number")
    tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, b"kept")
    tap.flush()
    (batch,) = taken(pipe[0], Reader())
    assert [record[-1] for record in batch.records()] == [b"kept"]
    assert (batch.sequence, batch.dropped_batches, tap.failures) == (1, 1, 1)


def test_without_a_pipe_everything_is_counted(loop: asyncio.AbstractEventLoop) -> None:
    tap = Tap(loop, None, 1)
    for _ in range(20):
        tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
    tap.flush()
    assert tap.dropped_records == 20
    assert tap.pending_bytes == 0
    tap.close()


def test_a_pipe_that_broke_is_counted(tap: Tap, pipe: tuple[socket.socket, socket.socket]) -> None:
    tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
    pipe[0].close()
    tap.flush()
    assert tap.dropped_bytes > len(SMALL)
    tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
    tap.flush()
    assert (tap.dropped_batches, tap.dropped_records, tap.pending_bytes) == (1, 1, 0)


def test_the_end_waits_for_the_observer_but_not_for_ever(
    loop: asyncio.AbstractEventLoop, tap: Tap, pipe: tuple[socket.socket, socket.socket]
) -> None:
    for _ in range(200):
        tap.add(Kind.UPSTREAM_DATA, 1, 0, 0, 0, SMALL)
    loop.run_until_complete(tap.drain(0.05))
    assert tap.pending_bytes > 0
    reader = Reader()
    n = 0

    async def both() -> None:
        nonlocal n
        draining = asyncio.ensure_future(tap.drain(10))
        while not draining.done():
            n += sum(len(list(batch.records())) for batch in taken(pipe[0], reader))
            await asyncio.sleep(0.001)
        await draining

    loop.run_until_complete(both())
    n += sum(len(list(batch.records())) for batch in taken(pipe[0], reader))
    assert n == 200
    tap.close()
