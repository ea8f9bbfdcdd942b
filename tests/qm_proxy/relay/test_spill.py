"""Bytes wait in order, whole or not at all, and leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.relay.spill import SEGMENT_BYTES, Spill


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), max_size=60))
def test_a_queue_of_bytes(steps: list[tuple[bool, int]]) -> None:
    spill, put, taken = Spill(20_000), bytearray(), bytearray()
    for n, (is_put, size) in enumerate(steps):
        data = bytes([n]) * size
        if is_put:
            if spill.put(data):
                put += data
        elif spill.waiting:
            taken += spill.take(size)
        assert spill.waiting == len(put) - len(taken)
    while spill.waiting:
        taken += spill.take(1 << 20)
    assert taken == put
    spill.clear()


def test_no_more_than_its_limit() -> None:
    spill = Spill(1000)
    assert spill.put(b"a" * 600)
    assert not spill.put(b"b" * 401)
    assert spill.put(b"c" * 400)
    assert spill.take(2000) == b"a" * 600 + b"c" * 400
    assert spill.put(b"d" * 1000)
    spill.clear()
    assert spill.waiting == 0


def test_what_is_taken_is_freed_by_segments() -> None:
    spill = Spill(10 * SEGMENT_BYTES)
    before = open_files()
    piece = bytes(SEGMENT_BYTES // 2)
    for _ in range(6):
        assert spill.put(piece)
    assert open_files() == before + 3
    for _ in range(8):
        spill.take(len(piece) // 2)
    assert open_files() == before + 1
    spill.clear()


def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> int:
        raise OSError(24, "Too many open files")

    spill = Spill(1000)
    with monkeypatch.context() as patched:
        patched.setattr("qm_proxy.relay.spill._nameless_file", none_left)
        assert not spill.put(b"x")
    assert spill.put(b"y")
    assert spill.take(10) == b"y"


def test_no_memory_left_is_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spill = Spill(1000)
    assert spill.put(b"first")
    write = os.pwrite
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:2], offset))
        assert not spill.put(b"torn")
    assert spill.put(b"last")
    assert spill.take(100) == b"firstlast"


def test_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    spill = Spill(1000)
    assert spill.put(b"in a file")
    assert spill.take(100) == b"in a file"
