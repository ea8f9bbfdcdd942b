"""The copy: every read with its time, in batches, down the pipe to the observer. It never waits and is bounded.

Rules that hold here:

- Forwarding came first. Nothing here can delay or fail a stream: what the pipe does not take at once waits in a queue of at
  most `QUEUE_BYTES`; beyond that whole batches are dropped and counted, and the next header says so.
- Under pressure the bulk goes first: with half the queue full, a read of `BULK_BYTES` or more is recorded as skipped (its
  number of bytes, not the bytes), so that one upload does not cost the other streams their tokens.
- The timer is armed only while something waits to be sent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque

from qm_proxy.relay.pipe import HEADER_BYTES, RECORD, Kind, batch_header

__all__ = ["BATCH_BYTES", "BULK_BYTES", "FLUSH_S", "QUEUE_BYTES", "Tap"]

FLUSH_S = 0.025
BATCH_BYTES = 64 * 1024
QUEUE_BYTES = 3 * 1024 * 1024
BULK_BYTES = 8 * 1024
_RETRY_S = 0.1  # while the observer does not read
_LAST_TRY_S = 0.01
_SKIPPED = 10  # Kind.CLIENT_SKIPPED − Kind.CLIENT_DATA, and the same for upstream
_DATA = (int(Kind.CLIENT_DATA), int(Kind.UPSTREAM_DATA))
_NUMBER = struct.Struct("<Q")


class Tap:
    """The relay's end of the pipe. `pipe` is a non-blocking stream socket, or None: then everything is counted as dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: socket.socket | None, relay: int) -> None:
        self._loop = loop
        self._pipe = pipe
        self._lost = pipe is None
        self._relay = relay
        self._batch = bytearray()
        self._queue: deque[memoryview] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0
        self._sequence = 0
        self.pending_bytes = 0
        self.dropped_batches = 0
        self.dropped_records = 0
        self.dropped_bytes = 0
        self.skipped_bytes = 0
        self.late_ns = 0  # the most that the timer came late since `take_late_ns`

    def add(self, kind: int, connection: int, t_ns: int, offset: int, lag_ns: int, data: memoryview | bytes = b"") -> None:
        """One record; `offset` as pipe.py says. The bytes are copied here and may be reused."""
        size = len(data)
        if size >= BULK_BYTES and self.pending_bytes > QUEUE_BYTES // 2 and kind in _DATA:
            self.skip(kind, connection, t_ns, offset, lag_ns, size)
            return
        batch = self._batch
        batch += RECORD.pack(kind, connection, t_ns, offset, lag_ns, size)
        batch += data
        if len(batch) >= BATCH_BYTES:
            self.flush()
        elif self._timer is None:
            self._arm(FLUSH_S)

    def skip(self, kind: int, connection: int, t_ns: int, offset: int, lag_ns: int, size: int) -> None:
        """Say that `size` bytes of this kind (CLIENT_DATA or UPSTREAM_DATA) passed without being copied."""
        self.skipped_bytes += size
        self.add(kind + _SKIPPED, connection, t_ns, offset, lag_ns, _NUMBER.pack(size))

    def flush(self) -> None:
        """Close the batch and send what the pipe takes now."""
        if self._batch:
            self._close_batch()
        self._send()
        if self._queue and self._timer is None:
            self._arm(_RETRY_S)

    def take_late_ns(self) -> int:
        late, self.late_ns = self.late_ns, 0
        return late

    async def drain(self, patience_s: float) -> None:
        """At the end, when no stream is left: give the observer so much time to take what waits."""
        self.flush()
        deadline = self._loop.time() + patience_s
        while self._queue and self._loop.time() < deadline:
            await asyncio.sleep(_LAST_TRY_S)
            self._send()

    def close(self) -> None:
        """What waits is lost."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pipe is not None:
            self._pipe.close()

    def _close_batch(self) -> None:
        payload = self._batch
        head = batch_header(
            len(payload),
            relay=self._relay,
            sequence=self._sequence,
            dropped_batches=self.dropped_batches,
            dropped_records=self.dropped_records,
            dropped_bytes=self.dropped_bytes,
        )
        self._sequence += 1
        if self._lost or (self._queue and self.pending_bytes + len(payload) > QUEUE_BYTES):
            self._count_drop(payload)
            payload.clear()
            return
        batch = memoryview(head + payload)
        payload.clear()
        self.pending_bytes += len(batch)
        self._queue.append(batch)

    def _send(self) -> None:
        queue, pipe = self._queue, self._pipe
        while queue:
            batch = queue[0]
            try:
                assert pipe is not None  # without one nothing is queued
                sent = pipe.send(batch)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the other end is gone for good (a new observer reads the old one's pipe)
                self._lose_pipe()
                return
            self.pending_bytes -= sent
            if sent == len(batch):
                queue.popleft()
            else:
                queue[0] = batch[sent:]

    def _lose_pipe(self) -> None:
        self._lost = True  # the socket is closed with the tap: the guard may still be watching it
        for batch in self._queue:
            self._count_drop(memoryview(batch.obj)[HEADER_BYTES:])  # the whole batch, also where a part of it was sent
        self._queue.clear()
        self.pending_bytes = 0

    def _count_drop(self, payload: bytearray | memoryview) -> None:
        self.dropped_batches += 1
        self.dropped_bytes += len(payload)
        offset = 0
        while offset < len(payload):
            offset += RECORD.size + RECORD.unpack_from(payload, offset)[5]
            self.dropped_records += 1

    def _arm(self, delay_s: float) -> None:
        self._due_ns = time.monotonic_ns() + int(delay_s * 1e9)
        self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.late_ns = max(self.late_ns, time.monotonic_ns() - self._due_ns)
        self.flush()
