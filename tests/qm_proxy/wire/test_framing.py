"""Records out of bodies: at any cut, of any length, in every line ending."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.wire.framing import COMMENT, MAX_RECORD, Lines, ServerSent, Whole

Event = tuple[bytes, bytes | None]


def cut(data: bytes, marks: list[int]) -> list[bytes]:
    edges = [0, *sorted({mark % (len(data) + 1) for mark in marks}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def lines(*pieces: bytes) -> list[bytes | None]:
    framing = Lines()
    found = [line for piece in pieces for line in framing.feed(piece)] + framing.close()
    return [line if line is None else line.strip() for line in found]


def events(*pieces: bytes) -> list[Event]:
    framing = ServerSent()
    return [event for piece in pieces for event in framing.feed(piece)] + framing.close()


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lines() -> None:
    assert lines(b'{"a":1}\n{"b":2}\n') == [b'{"a":1}', b'{"b":2}']
    assert lines(b'{"a":1}\r\n\r\n \n{"b":2}') == [b'{"a":1}', b'{"b":2}']
    assert lines(b"", b"\n", b"  ") == []


def test_only_a_line_feed_ends_a_line() -> None:
    """U+2028 and U+0085 are legal inside a JSON text; `str.splitlines` would cut there."""
    text = '"a\u2028b\u0085c\x0bd"'.encode()
    assert lines(text + b"\n") == [text]


def test_a_line_without_its_end_comes_out_at_the_end() -> None:
    framing = Lines()
    assert framing.feed(b'{"a"') == []
    assert framing.feed(b":1}") == []
    assert framing.close() == [b'{"a":1}']
    assert framing.close() == []


@settings(max_examples=150)
@given(st.binary(max_size=200).map(lambda b: b.replace(b"x", b"\n")), st.lists(st.integers(0, 10**6), max_size=20))
def test_11_lines_do_not_depend_on_the_cuts(data: bytes, marks: list[int]) -> None:
    assert lines(*cut(data, marks)) == lines(data)


@pytest.mark.parametrize("piece", [1 << 16, 1 << 24])
def test_11_an_8_mb_line_is_read_and_a_longer_one_only_counted(piece: int) -> None:
    fits, long = b"a" * MAX_RECORD, b"b" * (MAX_RECORD + 1)
    data = fits + b"\n" + long + b"\n" + b"c\n" + long
    found = lines(*[data[i : i + piece] for i in range(0, len(data), piece)])
    assert [line if line is None else (line[:1], len(line)) for line in found] == [(b"a", MAX_RECORD), None, (b"c", 1), None]


def test_12_memory_is_bounded() -> None:
    framing = Lines()
    piece = b"a" * 65536
    tracemalloc.start()
    for _ in range(1024):  # 64 MiB without a line end
        framing.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * MAX_RECORD


def test_no_byte_is_searched_twice() -> None:
    """A line fed byte by byte keeps its pieces and is joined once."""
    framing = Lines()
    for _ in range(1000):
        framing.feed(b"a")
    assert len(framing.pieces) == 1000
    assert framing.feed(b"\n") == [b"a" * 1000]


def test_a_gap_drops_the_unfinished_line() -> None:
    framing = Lines()
    framing.feed(b'{"content":"be')
    framing.missed()
    assert framing.feed(b'hind"}\n{"a":1}\n') == [b'hind"}', b'{"a":1}']


def test_a_whole_body_is_one_record() -> None:
    framing = Whole()
    assert framing.feed(b"{\n") == []
    assert framing.feed(b"") == []
    assert framing.feed(b'"a": 1\n}\n') == []
    assert framing.close() == [b'{\n"a": 1\n}\n']


# --- server-sent events -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_in_every_line_ending(end: bytes) -> None:
    body = b"data: a\n\nevent: x\ndata:b\n\n: hello\n\nid: 7\nretry: 3\ndata:  two\ndata: lines\n\n".replace(b"\n", end)
    expected = [(b"", b"a"), (b"x", b"b"), (COMMENT, b""), (b"", b" two\nlines")]
    assert events(body) == expected
    assert events(*[body[i : i + 1] for i in range(len(body))]) == expected


def test_an_event_without_data_is_none() -> None:
    assert events(b"event: x\n\n\n\ndata: a\n\n") == [(b"", b"a")]


def test_the_name_is_the_last_one_and_ends_with_its_event() -> None:
    assert events(b"event: x\nevent: y\ndata: a\n\ndata: b\n\n") == [(b"y", b"a"), (b"", b"b")]


def test_a_byte_order_mark_is_passed_over_once() -> None:
    mark = b"\xef\xbb\xbf"
    assert events(mark[:1], mark[1:] + b"data: a\n\n", mark + b"data: b\n\n") == [(b"", b"a")]


def test_a_last_event_without_its_blank_line_comes_out_at_the_end() -> None:
    assert events(b"data: a\n\ndata: [DONE]") == [(b"", b"a"), (b"", b"[DONE]")]
    assert events(b"event: x\ndata: [DONE]\n") == [(b"x", b"[DONE]")]


def test_what_servers_write_into_an_event_stream_that_is_no_event() -> None:
    assert events(b'error: {"code":500}\n\n') == [(b"error", b' {"code":500}')]
    assert events(b'{"error":"x"}\n') == [(b"", b'{"error":"x"}')]
    assert events(b"<html>\n") == []


_FRAGMENTS = st.lists(
    st.sampled_from(
        [b"data: ", b"data:", b"event: x", b":", b"\n", b"\n\n", b"\r\n", b"\r", b"{}", b"a", b"\xef\xbb\xbf", b"error: "]
    ),
    max_size=25,
).map(b"".join)


@settings(max_examples=200)
@given(_FRAGMENTS, st.lists(st.integers(0, 10**6), max_size=12))
def test_11_events_do_not_depend_on_the_cuts(data: bytes, marks: list[int]) -> None:
    assert events(*cut(data, marks)) == events(data)


@pytest.mark.parametrize("piece", [1 << 16, 1 << 25])
def test_11_an_oversized_event_costs_only_itself(piece: int) -> None:
    long = b"a" * (MAX_RECORD + 1)
    many = b"data: " + b"b" * 1000 + b"\n"
    data = b"event: x\ndata: " + long + b"\n\n" + many * 9000 + b"\ndata: c\n\ndata: " + long
    assert events(*[data[i : i + piece] for i in range(0, len(data), piece)]) == [
        (b"x", None),
        (b"", None),
        (b"", b"c"),
        (b"", None),
    ]


def test_12_event_memory_is_bounded() -> None:
    framing = ServerSent()
    tracemalloc.start()
    for _ in range(600):
        framing.feed(b"data: " + b"a" * 60_000 + b"\n")
        framing.feed(b"a" * 60_000)
        framing.feed(b"\n")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_RECORD


def test_a_gap_drops_the_unfinished_event() -> None:
    framing = ServerSent()
    framing.feed(b"event: x\ndata: a\ndata: b")
    framing.missed()
    assert framing.feed(b"tail\n\ndata: c\n\n") == [(b"", b"c")]
