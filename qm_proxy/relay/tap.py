"""The copy: every read with its time, in batches, down the pipe to the observer. It never waits and is bounded.

Rules that hold here:

- Forwarding came first. Nothing here can delay or fail a stream: what the pipe does not take at once waits in a `Spill` of at
  most `QUEUE_BYTES`; beyond that whole batches are dropped and counted, and the next header says so.
- Under pressure the bulk goes first: with five sixths of that waiting, a read of `BULK_BYTES` or more is recorded as skipped (its
  number of bytes, not the bytes), so that one upload does not cost the other streams their tokens.
- The timer is armed only while something waits to be sent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time

from qm_proxy.relay.pipe import RECORD, Kind, batch_header
from qm_proxy.relay.spill import Spill

__all__ = ["BATCH_BYTES", "BULK_BYTES", "FLUSH_S", "QUEUE_BYTES", "Tap"]

FLUSH_S = 0.025
BATCH_BYTES = 64 * 1024
QUEUE_BYTES = 48 * 1024 * 1024  # the largest request that is copied, and room for the streams beside it
BULK_BYTES = 8 * 1024
_PIECE_BYTES = 128 * 1024
_AT_ONCE_BYTES = 1024 * 1024  # sent in one go: the streams come first
_SOON_S = 0.005  # while the observer reads and more waits
_LATEST_S = 0.2  # while it does not read
_LAST_TRY_S = 0.01
_SKIPPED = 10  # Kind.CLIENT_SKIPPED − Kind.CLIENT_DATA, and the same for upstream
_DATA = (int(Kind.CLIENT_DATA), int(Kind.UPSTREAM_DATA))
_NUMBER = struct.Struct("<Q")
_pack = RECORD.pack


class Tap:
    """The relay's end of the pipe. `pipe` is a non-blocking stream socket, or None: then everything is counted as dropped."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pipe: socket.socket | None, relay: int, *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        self._loop = loop
        self._pipe = pipe
        self._lost = pipe is None
        self._relay = relay
        self._batch = bytearray()
        self._rest = memoryview(b"")  # of the batch that the pipe has taken in part; before all that is spilled
        self._spill = Spill(queue_bytes)
        self._pressure_bytes = queue_bytes * 5 // 6
        self._retry_s = FLUSH_S
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0
        self._sequence = 0
        self.dropped_batches = 0
        self.dropped_records = 0
        self.dropped_bytes = 0
        self.skipped_bytes = 0
        self.failures = 0  # exceptions in here
        self.late_ns = 0  # the most that the timer came late since `take_late_ns`

    def add(self, kind: int, connection: int, t_ns: int, offset: int, lag_ns: int, data: memoryview | bytes = b"") -> None:
        """One record; `offset` as pipe.py says. The bytes are copied here and may be reused. Never raises: a mistake of ours,
        or no memory, costs the batch and is counted."""
        try:
            size = len(data)
            if size >= BULK_BYTES and self._spill.waiting > self._pressure_bytes and kind in _DATA:
                self.skip(kind, connection, t_ns, offset, lag_ns, size)
                return
            batch = self._batch
            batch += _pack(kind, connection, t_ns, offset, lag_ns, size)
            batch += data
            if len(batch) >= BATCH_BYTES:
                self.flush()
            elif self._timer is None:
                self._arm(FLUSH_S)
        except Exception:
            self.failures += 1
            self.dropped_batches += 1
            self.dropped_bytes += len(self._batch)
            self._sequence += 1
            self._batch = bytearray()

    def skip(self, kind: int, connection: int, t_ns: int, offset: int, lag_ns: int, size: int) -> None:
        """Say that `size` bytes of this kind (CLIENT_DATA or UPSTREAM_DATA) passed without being copied."""
        self.skipped_bytes += size
        self.add(kind + _SKIPPED, connection, t_ns, offset, lag_ns, _NUMBER.pack(size))

    @property
    def pending_bytes(self) -> int:
        """What waits for the pipe."""
        return len(self._rest) + self._spill.waiting

    def flush(self) -> None:
        """Close the batch and send what the pipe takes now."""
        if self._batch:
            self._close_batch()
        before = self.pending_bytes
        if before:
            self._send()
            self._retry_s = _SOON_S if self.pending_bytes < before else min(2 * self._retry_s, _LATEST_S)
            if self.pending_bytes and self._timer is None:
                self._arm(self._retry_s)

    def take_late_ns(self) -> int:
        late, self.late_ns = self.late_ns, 0
        return late

    async def drain(self, patience_s: float) -> None:
        """At the end, when no stream is left: give the observer so much time to take what waits."""
        self.flush()
        deadline = self._loop.time() + patience_s
        while self.pending_bytes and self._loop.time() < deadline:
            await asyncio.sleep(_LAST_TRY_S)
            self._send()

    def close(self) -> None:
        """What waits is lost."""
        if self._timer is not None:
            self._timer.cancel()
        self._spill.clear()
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
        if self._lost:
            self._count_drop(payload)
        elif not self.pending_bytes:
            self._rest = memoryview(head + payload)
        elif not self._spill.put(head + payload):
            self._count_drop(payload)
        payload.clear()

    def _send(self) -> None:
        pipe, left = self._pipe, _AT_ONCE_BYTES
        assert pipe is not None  # without one nothing waits
        while left > 0:
            if not self._rest:
                if not self._spill.waiting:
                    return
                self._rest = memoryview(self._spill.take(_PIECE_BYTES))
            try:
                sent = pipe.send(self._rest)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the other end is gone for good (a new observer reads the old one's pipe)
                self._lose_pipe()
                return
            self._rest = self._rest[sent:]
            left -= sent

    def _lose_pipe(self) -> None:
        self._lost = True  # the socket is closed with the tap: the guard may still be watching it
        self.dropped_bytes += self.pending_bytes
        self._rest = memoryview(b"")
        self._spill.clear()

    def _count_drop(self, payload: bytearray) -> None:
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
