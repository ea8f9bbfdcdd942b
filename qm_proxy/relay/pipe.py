"""The pipe between a relay and the observer: a versioned binary format, pure. Little-endian, on a byte stream.

    batch   = header payload
    header  = magic "QMB" version:u8 · relay:u16 · sequence:u64 · dropped_batches:u64 · dropped_records:u64 · dropped_bytes:u64
              · payload_length:u32 · crc32 of the header so far:u32
    payload = record*
    record  = kind:u8 · connection:u64 · t_ns:u64 · offset:u64 · lag_ns:u32 · length:u32 · data[length]

Rules that hold here:

- A batch is whole or absent. The relay drops whole batches when the pipe is full; the counters are cumulative, so the next
  batch that gets through says exactly what is missing, and `sequence` says where.
- `offset` is how many bytes of that side of the connection came before this record (skipped ones included). After a loss
  it tells for each connection whether, and how much of it, is missing; the others go on undisturbed.
- A reader may start anywhere (a new observer on an old pipe): it skips to the next valid header and counts what it skipped.
- `t_ns` is `time.monotonic_ns()` at the read; `lag_ns` the time from there until our write of it returned: an upper bound,
  since the kernel may wake the receiver first (saturating; `LAG_UNKNOWN` while the receiver is slow: then a `*_READY` record
  tells when the backlog was gone).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

__all__ = [
    "LAG_UNKNOWN",
    "MAX_PAYLOAD",
    "RECORD",
    "VERSION",
    "Batch",
    "Kind",
    "Reader",
    "Seen",
    "batch_header",
    "order",
    "orders",
    "pack_batch",
    "pack_record",
]

VERSION = 1
MAX_PAYLOAD = 64 * 1024 * 1024
LAG_UNKNOWN = 0xFFFF_FFFF

_MAGIC = b"QMB" + bytes([VERSION])
_HEADER = struct.Struct("<4sHQQQQI")
_CRC = struct.Struct("<I")
_HEADER_SIZE = _HEADER.size + _CRC.size
RECORD = struct.Struct("<BQQQII")
_ORDER = struct.Struct("<4sBQII")
_ORDER_MAGIC = b"QMO" + bytes([VERSION])


class Kind(IntEnum):
    """What a record says. "Client" and "upstream" name the side it came from."""

    OPENED = 1  # a client connected; data: its address as text
    CONNECTED = 2  # our connection to the upstream stands
    CLIENT_DATA = 3
    UPSTREAM_DATA = 4
    CLIENT_EOF = 5  # FIN: nothing more from the client (half-close or close: not to be told apart)
    UPSTREAM_EOF = 6
    CLIENT_RESET = 7
    UPSTREAM_RESET = 8
    CLIENT_SLOW = 9  # the client does not take what we have: upstream is not read any more
    CLIENT_READY = 10  # it has taken all of it
    UPSTREAM_SLOW = 11
    UPSTREAM_READY = 12
    CLIENT_SKIPPED = 13  # bytes from the client that were forwarded, not copied; data: their number, u64
    UPSTREAM_SKIPPED = 14
    REFUSED = 15  # the upstream could not be reached; our own answer follows as UPSTREAM_DATA; data: the reason as text
    CLOSED = 16  # both sides are gone
    CUT = 17  # the guard's bytes were written and the upstream closed; data: the bytes
    SHUTDOWN = 18  # the relay ended this connection because it was stopped
    STATS = 19  # about the relay itself, once a second; connection 0; data: JSON object


Seen: TypeAlias = tuple[int, int, int, int, int, bytes]
"""(kind, connection, t_ns, offset, lag_ns, data)."""


def pack_record(kind: int, connection: int, t_ns: int, offset: int, lag_ns: int, data: bytes) -> bytes:
    """One record. `data` longer than 4 GiB is the caller's error (the relay never reads that much at once)."""
    return RECORD.pack(kind, connection, t_ns, offset, lag_ns, len(data)) + data


def batch_header(
    length: int, *, relay: int, sequence: int, dropped_batches: int, dropped_records: int, dropped_bytes: int
) -> bytes:
    """What precedes a payload of `length` bytes."""
    head = _HEADER.pack(_MAGIC, relay, sequence, dropped_batches, dropped_records, dropped_bytes, length)
    return head + _CRC.pack(zlib.crc32(head))


def pack_batch(
    payload: bytes, *, relay: int, sequence: int, dropped_batches: int, dropped_records: int, dropped_bytes: int
) -> bytes:
    """A whole batch, ready to send."""
    head = batch_header(
        len(payload),
        relay=relay,
        sequence=sequence,
        dropped_batches=dropped_batches,
        dropped_records=dropped_records,
        dropped_bytes=dropped_bytes,
    )
    return head + payload


@dataclass(slots=True)
class Batch:
    relay: int
    sequence: int
    dropped_batches: int
    dropped_records: int
    dropped_bytes: int
    payload: bytes

    def records(self) -> list[Seen]:
        """What happened, in order. Ends early, silently, on a torn payload."""
        payload, at, end, size = self.payload, 0, len(self.payload), RECORD.size
        unpack = RECORD.unpack_from
        found: list[Seen] = []
        while at + size <= end:
            kind, connection, t_ns, offset, lag_ns, length = unpack(payload, at)
            at += size + length
            if at > end:
                break
            found.append((kind, connection, t_ns, offset, lag_ns, payload[at - length : at]))
        return found


class Reader:
    """The observer's end: bytes in any pieces → batches. `skipped_bytes` counts what lay between valid headers."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.skipped_bytes = 0

    def feed(self, data: bytes) -> list[Batch]:
        buffer = self._buffer
        buffer += data
        batches: list[Batch] = []
        offset = 0
        while len(buffer) - offset >= _HEADER_SIZE:
            magic, relay, sequence, batches_lost, records_lost, bytes_lost, length = _HEADER.unpack_from(buffer, offset)
            (crc,) = _CRC.unpack_from(buffer, offset + _HEADER.size)
            if magic != _MAGIC or length > MAX_PAYLOAD or crc != zlib.crc32(memoryview(buffer)[offset : offset + _HEADER.size]):
                found = buffer.find(_MAGIC, offset + 1)
                jump = found if found >= 0 else max(offset + 1, len(buffer) - len(_MAGIC) + 1)
                self.skipped_bytes += jump - offset
                offset = jump
                continue
            end = offset + _HEADER_SIZE + length
            if end > len(buffer):
                break
            payload = bytes(memoryview(buffer)[offset + _HEADER_SIZE : end])
            batches.append(Batch(relay, sequence, batches_lost, records_lost, bytes_lost, payload))
            offset = end
        del buffer[:offset]
        return batches


def order(connection: int, exchange: int, data: bytes) -> bytes:
    """The one message that goes back, from observer to relay: end the `exchange`-th exchange of `connection` with `data`."""
    return _ORDER.pack(_ORDER_MAGIC, 1, connection, exchange, len(data)) + data


def orders(buffer: bytearray) -> list[tuple[int, int, bytes]]:
    """Take the complete orders off the front of `buffer`: (connection, exchange, data). Garbage empties the buffer."""
    found: list[tuple[int, int, bytes]] = []
    while len(buffer) >= _ORDER.size:
        magic, _, connection, exchange, length = _ORDER.unpack_from(buffer)
        if magic != _ORDER_MAGIC:
            buffer.clear()
            break
        end = _ORDER.size + length
        if len(buffer) < end:
            break
        found.append((connection, exchange, bytes(buffer[_ORDER.size : end])))
        del buffer[:end]
    return found
