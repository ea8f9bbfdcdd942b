"""The format between relay and observer: round trips, torn and foreign bytes."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.relay.pipe import LAG_UNKNOWN, RECORD, Kind, Reader, batch_header, order, orders, pack_batch, pack_record

u64 = st.integers(0, 2**64 - 1)
records = st.tuples(st.sampled_from(Kind), u64, u64, u64, st.integers(0, LAG_UNKNOWN), st.binary(max_size=200))


def batch(payload: bytes, sequence: int = 0) -> bytes:
    return pack_batch(payload, relay=3, sequence=sequence, dropped_batches=1, dropped_records=2, dropped_bytes=4)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(n % (len(data) + 1) for n in at)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(records, max_size=5), max_size=5), st.lists(st.integers(0, 10_000), max_size=20))
def test_round_trip_however_it_is_cut(batches: list[list[tuple[Kind, int, int, int, int, bytes]]], at: list[int]) -> None:
    wire = b"".join(batch(b"".join(pack_record(*r) for r in rs), n) for n, rs in enumerate(batches))
    reader = Reader()
    found = [one for piece in cut(wire, at) for one in reader.feed(piece)]
    assert [list(one.records()) for one in found] == batches
    assert [one.sequence for one in found] == list(range(len(batches)))
    assert all((one.relay, one.dropped_batches, one.dropped_records, one.dropped_bytes) == (3, 1, 2, 4) for one in found)
    assert reader.skipped_bytes == 0


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=10))
def test_a_reader_finds_the_next_batch_behind_anything(garbage: bytes, at: list[int]) -> None:
    """A new observer starts in the middle; a magic within a payload does not fool it (the header's sum must fit)."""
    payload = pack_record(Kind.CLIENT_DATA, 1, 2, 3, 4, b"QMB\x01" * 9)
    start = batch(payload)[len(batch(payload)) // 2 :] + garbage
    reader = Reader()
    found = [one for piece in cut(start + batch(payload, 5) + batch(b"", 6), at) for one in reader.feed(piece)]
    assert [one.sequence for one in found] == [5, 6]
    assert found[0].payload == payload
    assert reader.skipped_bytes == len(start)


def test_a_torn_payload_ends_its_records_early() -> None:
    payload = pack_record(Kind.CLIENT_DATA, 1, 2, 3, 4, b"whole") + pack_record(Kind.CLIENT_DATA, 1, 2, 3, 4, b"torn")[:-1]
    (one,) = Reader().feed(batch(payload))
    assert [record[-1] for record in one.records()] == [b"whole"]


def test_a_batch_is_its_header_and_its_payload() -> None:
    head = batch_header(5, relay=3, sequence=0, dropped_batches=1, dropped_records=2, dropped_bytes=4)
    assert head + b"12345" == batch(b"12345")
    assert RECORD.size == len(pack_record(Kind.CLOSED, 0, 0, 0, 0, b""))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(u64, st.integers(0, 2**32 - 1), st.binary(max_size=50)), max_size=5), st.lists(st.integers(0, 999)))
def test_orders_however_they_are_cut(given_orders: list[tuple[int, int, bytes]], at: list[int]) -> None:
    buffer = bytearray()
    found = []
    for piece in cut(b"".join(order(*one) for one in given_orders), at):
        buffer += piece
        found += orders(buffer)
    assert found == given_orders
    assert not buffer


def test_garbage_empties_the_order_buffer() -> None:
    buffer = bytearray(b"x" * 100)
    assert orders(buffer) == []
    assert not buffer
