"""Chunk boundaries are found exactly, however the bytes come, and doubt is never resolved by guessing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.relay.chunks import Requests, Responses

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def follower(*requests: bytes) -> Responses:
    asked = Requests()
    for request in requests:
        assert asked.feed(request) is None
        assert not asked.lost
    return Responses(asked)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def requests_ended(data: bytes, step: int) -> tuple[int, bool]:
    asked = Requests()
    for n in range(0, len(data), step):
        asked.feed(data[n : n + step])
    return asked.index, asked.lost


REQUESTS = {
    b"": 0,
    GET: 1,
    GET * 3: 3,
    GET[:-1]: 0,
    b"\r\n" + GET: None,
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" + GET: 2,
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab": 0,
    b"POST / HTTP/1.1\r\ncontent-length:0\r\n\r\n": 1,
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc": 1,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"abc") + b"0\r\n\r\n" + GET: 2,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n0;z\r\nX: 1\r\nY: 2\r\n\r\n" + GET: 2,
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n": None,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n": None,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n": None,
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n": None,
    b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n": None,
    b"POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n": None,
    b"GET / HTTP/1.1\nHost: h\n\n" + GET: None,
    b"GET / HTTP/1.1\r\nFolded: a\r\n b\r\n\r\n": None,
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n": None,
    b"GET / HTTP/1.1\r\nHost : h\r\n\r\n": None,
    b"GET /\r\n\r\n": None,
    b"GET / HTTP/2.0\r\n\r\n": None,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n": None,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n": None,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n": None,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad trailer\r\n\r\n": None,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000: None,
    b"GET / HTTP/1.1\r\nX: " + b"x" * 300_000: None,
    b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n": 1,
}


@pytest.mark.parametrize("data", REQUESTS, ids=range(len(REQUESTS)))
@pytest.mark.parametrize("step", [1, 7, 1 << 30])
def test_requests_are_counted_or_given_up(data: bytes, step: int) -> None:
    if len(data) > 10_000 and step < 7:
        step = 4096
    index, lost = requests_ended(data, step)
    expected = REQUESTS[data]
    assert lost is (expected is None)
    if expected is not None:
        assert index == expected


def responses_ended(requests: tuple[bytes, ...], data: bytes) -> tuple[int, bool]:
    answers = follower(*requests)
    answers.feed(data)
    return answers.index, answers.lost


HEAD = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("requests", "data", "index", "lost"),
    [
        ((GET,), OK, 1, False),
        ((GET, GET), OK + OK, 2, False),
        ((GET,), STREAM + chunk(b"a") + b"0\r\n\r\n", 1, False),
        ((GET,), STREAM + chunk(b"a"), 0, False),
        ((GET,), b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 1, False),
        ((GET,), b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + OK, 1, False),
        ((HEAD, GET), b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + OK, 2, False),
        ((HEAD, GET), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + OK, 2, False),
        ((GET, GET), b"HTTP/1.1 204 No Content\r\n\r\n" + OK, 2, False),
        ((GET, GET), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n" + OK, 2, False),
        ((GET,), b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 1, False),
        ((GET,), b"HTTP/1.0 200 OK\r\n\r\nto the end" + OK, 0, False),
        ((GET,), b"HTTP/1.1 101 Switching\r\n\r\n", 0, True),
        ((b"CONNECT h:1 HTTP/1.1\r\n\r\n",), b"HTTP/1.1 200 OK\r\n\r\n", 0, True),
        ((), OK, 0, True),
        ((GET,), OK + OK, 1, True),
        ((GET,), b"garbage\r\n\r\n", 0, True),
        ((GET,), b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, True),
    ],
)
def test_responses_are_counted_or_given_up(requests: tuple[bytes, ...], data: bytes, index: int, lost: bool) -> None:
    assert responses_ended(requests, data) == (index, lost)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6),
    st.integers(0, 2),
    st.lists(st.integers(0, 400), max_size=12),
    st.integers(0, 400),
)
def test_a_cut_stands_at_a_boundary_of_its_own_answer(chunks: list[bytes], before: int, at: list[int], order_at: int) -> None:
    """Against an oracle that knows where the boundaries are because it wrote them."""
    answer = STREAM + b"".join(map(chunk, chunks)) + b"0\r\n\r\n"
    start = before * len(answer)
    boundaries = [start + len(STREAM) + sum(len(chunk(c)) for c in chunks[:n]) for n in range(len(chunks))]
    wire = answer * (before + 2)
    order_at = min(order_at, len(wire))
    answers = follower(*[GET] * (before + 2))
    places = sorted({0, len(wire), order_at, *(n % len(wire) for n in at)})
    found = None
    for a, b in itertools.pairwise(places):
        ordered = a >= order_at
        if ordered and answers.at_boundary(before):
            found = a
            break
        cut = answers.feed(wire[a:b], before if ordered else None)
        if cut is not None:
            found = a + cut
            break
    following = [boundary for boundary in boundaries if boundary >= order_at]
    last = start + len(answer) - 5  # the last chunk's own boundary: a cut there is right only if its bytes are not there yet
    if found is None:
        assert not following
        assert answers.index == before + 2
    else:
        assert found in ([*following[:1], last] if not following else following[:1])
        assert not answers.unfit(before)


def test_unfit() -> None:
    answers = follower(GET, GET)
    assert not answers.unfit(0)
    answers.feed(STREAM)
    assert not answers.unfit(0)
    assert answers.at_boundary(0)
    assert not answers.at_boundary(1)
    answers.feed(b"1")
    assert not answers.at_boundary(0)
    answers.feed(b"\r\na\r\n0\r\n\r\n")
    assert answers.unfit(0)
    assert not answers.unfit(1)
    answers.feed(OK[:-1])
    assert answers.unfit(1)
    assert not answers.unfit(2)
    answers.feed(b"}garbage\r\n\r\n")
    assert answers.unfit(2)
