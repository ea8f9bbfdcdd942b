"""Both sides of a connection: every kind of message, of end, of nonsense and of gap."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import Nanoseconds
from qm_proxy.wire.http import (
    MAX_HEAD,
    Broken,
    HttpConnection,
    HttpEvent,
    Informational,
    RequestBody,
    RequestEnd,
    RequestHead,
    ResponseBody,
    ResponseEnd,
    ResponseHead,
    Skipped,
)

Step = tuple[Literal["c", "u", "c-", "u-", "ce", "cr", "ue", "ur", "x"], Any]

GET = b"GET /api/tags HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /api/chat HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
OK5 = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def play(steps: Iterable[Step], connection: HttpConnection | None = None) -> list[HttpEvent]:
    http = connection or HttpConnection()
    events: list[HttpEvent] = []
    for t, (kind, value) in enumerate(steps):
        now = Nanoseconds(t)
        match kind:
            case "c":
                events += http.client(value, now)
            case "u":
                events += http.upstream(value, now)
            case "c-":
                events += http.client_skipped(value, now)
            case "u-":
                events += http.upstream_skipped(value, now)
            case "ce":
                events += http.client_end("eof", now)
            case "cr":
                events += http.client_end("reset", now)
            case "ue":
                events += http.upstream_end("eof", now)
            case "ur":
                events += http.upstream_end("reset", now)
            case "x":
                events += http.closed(now)
    return events


def told(events: Sequence[HttpEvent]) -> list[tuple[Any, ...]]:
    """Events without times and evidence, neighbouring bodies joined: what must not depend on the cuts."""
    out: list[tuple[Any, ...]] = []
    for event in events:
        match event:
            case RequestHead(n=n, method=method, target=target, headers=headers):
                out.append(("ask", n, method, target, headers))
            case RequestBody(n=n, data=data):
                if out and out[-1][:2] == ("ask body", n):
                    out[-1] = ("ask body", n, out[-1][2] + data)
                else:
                    out.append(("ask body", n, data))
            case RequestEnd(n=n):
                out.append(("asked", n))
            case Informational(n=n, status=status):
                out.append(("1xx", n, status))
            case ResponseHead(n=n, status=status):
                out.append(("head", n, status))
            case ResponseBody(n=n, data=data):
                if out and out[-1][:2] == ("body", n):
                    out[-1] = ("body", n, out[-1][2] + data)
                else:
                    out.append(("body", n, data))
            case ResponseEnd(n=n, clean=clean, how=how):
                out.append(("end", n, clean, how))
            case Skipped(n=n, side=side, n_bytes=n_bytes):
                out.append(("skip", n, side, n_bytes))
            case Broken(n=n, side=side):
                out.append(("broken", n, side))
    return out


def kinds(*steps: Step) -> list[tuple[Any, ...]]:
    return told(play(steps))


def over(n: int) -> tuple[Any, ...]:
    return ("end", n, True, "framing")


NEXT = ("ask", 1, "GET", b"/api/tags", ((b"Host", b"h"),))
EMPTY_404 = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\n\r\n"
UPLOAD = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
CONNECT = b"CONNECT h:1 HTTP/1.1\r\n\r\n"
ASK = ("ask", 0, "GET", b"/api/tags", ((b"Host", b"h"),))


# --- the ordinary -----------------------------------------------------------------------------------------------------


def test_a_length_body() -> None:
    assert kinds(("c", GET), ("u", OK5)) == [
        ASK,
        ("asked", 0),
        ("head", 0, 200),
        ("body", 0, b"hello"),
        over(0),
    ]


def test_a_chunked_body_with_extensions_and_trailers() -> None:
    body = b"5;name=value\r\nhello\r\n" + chunk(b" world") + b"0\r\nX-Trailer: a\r\nB: c\r\n\r\n"
    assert kinds(("c", GET), ("u", CHUNKED + body))[2:] == [
        ("head", 0, 200),
        ("body", 0, b"hello world"),
        over(0),
    ]


def test_times_and_the_first_byte() -> None:
    http = HttpConnection()
    http.client(b"POST /x HT", Nanoseconds(10))
    head, body, end = http.client(b"TP/1.1\r\nContent-Length: 1\r\n\r\nx", Nanoseconds(20))
    assert isinstance(head, RequestHead)
    assert (head.first_ns, head.t_ns, body.t_ns, end.t_ns) == (10, 20, 20, 20)


def test_headers_as_sent() -> None:
    raw = b"GET / HTTP/1.1\r\nx-A: 1\r\nX-a:  two \t\r\nfold: a\r\n  b\r\nLat: \xe9\r\nempty:\r\n\r\n"
    (head, _) = HttpConnection().client(raw, Nanoseconds(0))
    assert isinstance(head, RequestHead)
    assert head.headers == ((b"x-A", b"1"), (b"X-a", b"two"), (b"fold", b"a b"), (b"Lat", b"\xe9"), (b"empty", b""))


def test_pipelining_in_order_with_head_204_and_304_between() -> None:
    head = b"HEAD / HTTP/1.1\r\n\r\n"
    answers = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"
        + OK5
        + b"HTTP/1.1 204 No Content\r\n\r\n"
        + b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"
        + CHUNKED
        + chunk(b"z")
        + LAST
    )
    found = kinds(("c", head + GET + GET + GET + POST), ("u", answers))
    assert [f for f in found if f[0] in ("head", "body", "end")] == [
        ("head", 0, 200), over(0),
        ("head", 1, 200), ("body", 1, b"hello"), over(1),
        ("head", 2, 204), over(2),
        ("head", 3, 304), over(3),
        ("head", 4, 200), ("body", 4, b"z"), over(4),
    ]  # fmt: skip


def test_head_of_a_chunked_answer_has_no_body() -> None:
    found = kinds(("c", b"HEAD / HTTP/1.1\r\n\r\n" + GET), ("u", CHUNKED + OK5))
    assert over(0) in found
    assert ("body", 1, b"hello") in found


def test_informational_answers_come_before_the_final_one() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    found = kinds(("c", POST), ("u", early + OK5))
    assert found[3:6] == [("1xx", 0, 100), ("1xx", 0, 103), ("head", 0, 200)]


def test_http_1_0_is_delimited_by_the_close() -> None:
    found = kinds(("c", b"GET / HTTP/1.0\r\n\r\n"), ("u", b"HTTP/1.0 200 OK\r\n\r\nab"), ("u", b"cd"), ("ue", None))
    assert found[2:] == [("head", 0, 200), ("body", 0, b"abcd"), over(0)]


def test_an_early_answer_while_the_upload_goes_on() -> None:
    http = HttpConnection()
    events = play([("c", b"POST /api/blobs/x HTTP/1.1\r\nContent-Length: 6\r\n\r\nab"), ("u", OK5), ("c", b"cdef" + GET)], http)
    assert told(events) == [
        ("ask", 0, "POST", b"/api/blobs/x", ((b"Content-Length", b"6"),)), ("ask body", 0, b"ab"),
        ("head", 0, 200), ("body", 0, b"hello"), over(0),
        ("ask body", 0, b"cdef"), ("asked", 0),
        NEXT, ("asked", 1),
    ]  # fmt: skip
    assert told(play([("u", OK5)], http))[0] == ("head", 1, 200)


@pytest.mark.parametrize("method", ["BREW", "M-SEARCH", "get", "TRACE", "PRI"])
def test_any_token_is_a_method(method: str) -> None:
    """llhttp refuses these; Go's server answers them."""
    (ask, _) = kinds(("c", method.encode() + b" /x HTTP/1.1\r\n\r\n"))
    assert ask[2] == method


@pytest.mark.parametrize(
    "target",
    [b"http://h:1/api/chat?x", b"*", b"/a b", b"/\xff\xc3\xa9{|}", b"/%zz", b"/?", b"//x", b"/" + b"a" * 20_000, b"/x#y"],
)
def test_any_target_is_kept_as_sent(target: bytes) -> None:
    (ask, _) = kinds(("c", b"GET " + target + b" HTTP/1.1\r\n\r\n"))
    assert ask[3] == target


def test_bare_line_feeds_and_leading_blank_lines() -> None:
    found = kinds(("c", b"\r\n\nGET / HTTP/1.1\nHost: h\n\n"), ("u", b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx"))
    assert found[-2:] == [("body", 0, b"x"), over(0)]


def test_two_equal_lengths_are_one() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\ncontent-length: 1, 1\r\n\r\nx"
    assert kinds(("c", GET), ("u", raw))[-1] == over(0)


# --- connect and upgrade ----------------------------------------------------------------------------------------------


def test_connect_opens_a_tunnel() -> None:
    found = kinds(
        ("c", CONNECT + b"\x16\x03"),
        ("u", b"HTTP/1.1 200 OK\r\n\r\n\x16"),
        ("c", b"more"),
        ("u", b"more"),
        ("ue", None),
    )
    assert found == [("ask", 0, "CONNECT", b"h:1", ()), ("asked", 0), ("head", 0, 200), ("end", 0, True, "upstream_eof")]


def test_connect_refused_goes_on_with_the_next_request() -> None:
    found = kinds(("c", CONNECT + GET), ("u", EMPTY_404), ("u", OK5))
    assert found[2:6] == [
        ("head", 0, 404),
        over(0),
        NEXT,
        ("asked", 1),
    ]
    assert found[-1] == over(1)


def test_connect_without_an_answer_is_bounded() -> None:
    found = kinds(("c", CONNECT), ("c", b"x" * (MAX_HEAD + 1)), ("c", b"y"))
    assert found[-1] == ("broken", 0, "client")


def test_an_upgrade_that_is_ignored_is_an_ordinary_request() -> None:
    """Java's client offers h2c on every plain request; Ollama answers it in HTTP/1.1."""
    ask = b"POST /api/chat HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    found = kinds(("c", ask + chunk(b"{}") + LAST + GET), ("u", OK5 + OK5))
    assert [f[:2] for f in found if f[0] in ("ask body", "end")] == [("ask body", 0), ("end", 0), ("end", 1)]


def test_switching_protocols_is_a_tunnel() -> None:
    found = kinds(
        ("c", b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"),
        ("u", b"HTTP/1.1 101 S\r\n\r\n\x81"),
        ("c", b"\x81"),
        ("cr", None),
    )
    assert found[2:] == [("head", 0, 101), ("end", 0, True, "client_reset")]


# --- ends -------------------------------------------------------------------------------------------------------------

OPEN: list[Step] = [("c", GET), ("u", CHUNKED + chunk(b"a"))]


@pytest.mark.parametrize(
    ("ends", "how"),
    [
        ([("ue", None)], "upstream_eof"),
        ([("ur", None)], "upstream_reset"),
        ([("cr", None)], "client_reset"),
        ([("ce", None), ("ue", None)], "client_eof"),
        ([("ce", None), ("ur", None)], "client_eof"),
        ([("ce", None), ("cr", None)], "client_eof"),
        ([("ce", None), ("x", None)], "client_eof"),
        ([("x", None)], "closed"),
    ],
)
@pytest.mark.parametrize("begin", [OPEN, OPEN[:1], [*OPEN[:1], ("u", b"HTTP/1.1 20")]])
def test_cut_short(begin: list[Step], ends: list[Step], how: str) -> None:
    found = kinds(*begin, *ends, ("x", None), ("u", b"late"), ("c", b"late"))
    assert found[-1] == ("end", 0, False, how)
    assert sum(f[0] == "end" for f in found) == 1


def test_every_waiting_exchange_ends() -> None:
    found = kinds(("c", GET * 3), ("u", OK5 + CHUNKED), ("ur", None))
    assert [f for f in found if f[0] == "end"] == [
        over(0),
        ("end", 1, False, "upstream_reset"),
        ("end", 2, False, "upstream_reset"),
    ]


def test_a_half_closed_client_still_gets_its_answer() -> None:
    found = kinds(("c", GET), ("ce", None), ("u", OK5), ("ue", None), ("x", None))
    assert found[2:] == [("head", 0, 200), ("body", 0, b"hello"), ("end", 0, True, "client_eof")]


def test_a_reset_does_not_end_a_close_delimited_body_cleanly() -> None:
    found = kinds(("c", GET), ("u", b"HTTP/1.1 200 OK\r\n\r\nab"), ("ur", None))
    assert found[-1] == ("end", 0, False, "upstream_reset")


def test_a_request_cut_short() -> None:
    assert kinds(("c", b"GET / HT"), ("ce", None), ("x", None)) == [("broken", 0, "client")]
    found = kinds(("c", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"), ("ce", None), ("ue", None))
    assert [f[0] for f in found] == ["ask", "ask body", "end"]


def test_an_idle_connection_ends_without_a_word() -> None:
    assert kinds(("ce", None), ("ue", None), ("x", None)) == []
    assert kinds(("c", GET), ("u", OK5), ("ue", None), ("ce", None), ("x", None))[-1][0] == "end"


def test_an_answers_head_cut_short_says_so() -> None:
    found = kinds(("c", GET), ("u", b"HTTP/1.1 200 OK\r\nContent-"), ("ue", None))
    assert found[2:] == [("broken", 0, "upstream"), ("end", 0, False, "upstream_eof")]


# --- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"HELO x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1 x\r\n\r\n",
        b"\x80",
    ],
)
def test_garbage_from_the_client_leaves_its_answer_readable(garbage: bytes) -> None:
    found = kinds(("c", garbage), ("u", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400"), ("ue", None))
    assert found == [("broken", 0, "client"), ("head", 0, 400), ("body", 0, b"400"), over(0)]


@pytest.mark.parametrize(
    "garbage", [b"\x00\x01", b"HTTQ/1.1 200 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"<html>", b"HTTP/2 200\r\n\r\n"]
)
def test_garbage_from_the_upstream(garbage: bytes) -> None:
    found = kinds(("c", GET), ("u", garbage), ("u", b"more"), ("ue", None), ("x", None))
    assert found == [ASK, ("asked", 0), ("broken", 0, "upstream"), ("end", 0, False, "broken")]


def test_requests_are_read_on_beside_a_broken_upstream() -> None:
    found = kinds(("c", GET), ("u", b"garbage"), ("c", GET), ("u", OK5))
    assert found[4:] == [
        NEXT, ("asked", 1),
        ("head", 1, 200), ("body", 1, b"hello"), over(1),
    ]  # fmt: skip


def test_broken_chunks_give_what_was_read_before() -> None:
    found = kinds(("c", GET), ("u", CHUNKED), ("u", chunk(b"ab") + b"zz\r\n"), ("u", b"x"))
    assert found[3:] == [("body", 0, b"ab"), ("broken", 0, "upstream"), ("end", 0, False, "broken")]
    late = kinds(("c", GET), ("u", CHUNKED), ("u", chunk(b"ab") + b"zz\r\n\r\n"), ("u", b"x"))
    assert late[3:] == [("body", 0, b"ab"), ("broken", 0, "upstream"), ("end", 0, False, "broken")]


AMBIGUOUS = [
    b"Content-Length: 1\r\nContent-Length: 2\r\n",
    b"Content-Length: 1, 2\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 1x\r\n",
    b"Content-Length: \r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Content-Length : 2\r\n",
    b"no colon\r\n",
]


@pytest.mark.parametrize("fields", [*AMBIGUOUS, b"Transfer-Encoding: gzip\r\n"])
def test_a_doubtful_request_is_shown_and_not_trusted(fields: bytes) -> None:
    found = kinds(
        ("c", b"POST /x HTTP/1.1\r\n" + fields + b"\r\n{}GET / HTTP/1.1\r\n\r\n"),
        ("u", b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"),
    )
    assert [f[0] for f in found] == ["ask", "broken", "head", "end"]


@pytest.mark.parametrize("fields", AMBIGUOUS)
def test_a_doubtful_answer_is_shown_and_not_trusted(fields: bytes) -> None:
    found = kinds(("c", GET), ("u", b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n{}"), ("ue", None))
    assert found[2:] == [("head", 0, 200), ("broken", 0, "upstream"), ("end", 0, False, "broken")]


def test_an_answer_in_another_coding_than_chunked_lasts_until_the_close() -> None:
    found = kinds(("c", GET), ("u", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab"), ("ue", None))
    assert found[-2:] == [("body", 0, b"ab"), over(0)]


def test_http_1_0_knows_no_chunks() -> None:
    assert ("broken", 0, "client") in kinds(("c", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"))
    assert ("broken", 0, "upstream") in kinds(("c", GET), ("u", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))


def test_bytes_after_the_end() -> None:
    found = kinds(("c", GET), ("u", OK5 + b"surplus"), ("c", GET), ("u", OK5))
    assert found[4:6] == [over(0), ("broken", 1, "upstream")]
    assert found[-1] == over(1)


def test_an_answer_that_nobody_asked_for_has_its_own_number() -> None:
    timeout = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    found = kinds(("u", timeout), ("c", GET), ("u", OK5))
    assert found == [
        ("head", 0, 408), over(0),
        NEXT, ("asked", 1),
        ("head", 1, 200), ("body", 1, b"hello"), over(1),
    ]  # fmt: skip
    half = kinds(("u", timeout[:-4] + b"\r\nContent-Length: 2\r\n\r\n"), ("c", GET))
    assert half[-1] != over(0)


def test_an_unasked_answer_in_progress_ends_too() -> None:
    assert kinds(("u", b"HTTP/1.1 200 OK\r\n\r\nab"), ("c", GET), ("ur", None))[-2:] == [
        ("end", 0, False, "upstream_reset"),
        ("end", 1, False, "upstream_reset"),
    ]


def test_a_head_refused_before_it_was_complete() -> None:
    found = kinds(
        ("c", b"GET / HTTP/1.1\r\nBig: "),
        ("u", b"HTTP/1.1 431 Too Large\r\nContent-Length: 0\r\n\r\n"),
        ("c", b"x\r\n\r\n"),
        ("x", None),
    )
    assert found[:2] == [("head", 0, 431), over(0)]
    assert found[2][:3] == ("ask", 1, "GET")
    assert found[-1] == ("end", 1, False, "closed")


@pytest.mark.parametrize("piece", [1000, MAX_HEAD + 10])
def test_header_bombs_are_bounded(piece: int) -> None:
    bomb = b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD + 10)
    http = HttpConnection()
    found = told(play([("c", bomb[i : i + piece]) for i in range(0, len(bomb), piece)], http))
    assert found == [("broken", 0, "client")]
    whole = told(HttpConnection().client(bomb + b"\r\n\r\n", Nanoseconds(0)))
    assert whole == [("broken", 0, "client")]


@pytest.mark.parametrize("piece", [1000, MAX_HEAD * 2])
def test_answer_header_bombs_are_bounded(piece: int) -> None:
    bomb = b"HTTP/1.1 200 OK\r\nX: " + b"a" * (MAX_HEAD + 5000) + b"\r\n\r\n"
    http = HttpConnection()
    play([("c", GET)], http)
    found = told(play([("u", bomb[i : i + piece]) for i in range(0, len(bomb), piece)], http))
    assert found == [("broken", 0, "upstream"), ("end", 0, False, "broken")]


def test_a_pipeline_without_end_is_bounded() -> None:
    found = kinds(("c", GET * 5000))
    assert found[-1] == ("broken", 4096, "client")
    assert sum(f[0] == "ask" for f in found) == 4096


def test_empty_reads_give_nothing() -> None:
    assert kinds(("c", b""), ("u", b""), ("c-", 0), ("u-", 0)) == []
    assert kinds(("c", GET), ("u", CHUNKED), ("u", b""))[-1] == ("head", 0, 200)


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_gap_inside_a_length_body_is_bridged_on_both_sides() -> None:
    found = kinds(
        ("c", b"POST /x HTTP/1.1\r\nContent-Length: 100\r\n\r\nab"), ("c-", 96), ("c", b"cd"),
        ("u", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nxy"), ("u-", 46), ("u", b"zz"), ("c", GET), ("u", OK5),
    )  # fmt: skip
    assert found[1:11] == [
        ("ask body", 0, b"ab"), ("skip", 0, "client", 96), ("ask body", 0, b"cd"), ("asked", 0),
        ("head", 0, 200), ("body", 0, b"xy"), ("skip", 0, "upstream", 46), ("body", 0, b"zz"), over(0),
        NEXT,
    ]  # fmt: skip
    assert found[-1] == over(1)


def test_a_gap_that_ends_a_length_body_exactly() -> None:
    found = kinds(("c", GET), ("u", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nxy"), ("u-", 48), ("c", GET), ("u", OK5))
    assert found[4:6] == [("skip", 0, "upstream", 48), over(0)]
    assert found[-1] == over(1)


def test_a_gap_inside_one_chunk_is_bridged() -> None:
    start = CHUNKED + b"186a0\r\n" + b"a" * 10
    found = kinds(("c", GET), ("u", start), ("u-", 99_980), ("u", b"b" * 10 + b"\r\n" + chunk(b"end") + LAST))
    assert found[3:] == [
        ("body", 0, b"a" * 10),
        ("skip", 0, "upstream", 99_980),
        ("body", 0, b"b" * 10 + b"end"),
        over(0),
    ]


def test_a_gap_over_chunks_is_found_again_at_a_whole_chunk() -> None:
    """A dropped batch of 25 ms must not cost the rest of a long answer, its `done` record above all."""
    found = kinds(
        ("c", GET), ("u", CHUNKED + chunk(b"a")), ("u-", 500),
        ("u", b'ail"}\n\r\n'), ("u", chunk(b"b")), ("u", chunk(b"c") + LAST),
    )  # fmt: skip
    assert found[3:] == [("body", 0, b"a"), ("skip", 0, "upstream", 500), ("body", 0, b"bc"), over(0)]


def test_a_gap_that_hides_the_end_is_noticed_at_the_next_answer() -> None:
    found = kinds(("c", GET), ("u", CHUNKED + chunk(b"a")), ("u-", 500), ("c", GET), ("u", OK5), ("x", None))
    assert found[-4:] == [("end", 0, False, "broken"), ("head", 1, 200), ("body", 1, b"hello"), over(1)]


def test_a_gap_that_hides_an_answers_head() -> None:
    found = kinds(("c", GET), ("u-", 500), ("u", chunk(b"a") + LAST), ("c", GET), ("u", OK5))
    assert found[2:] == [
        ("skip", 0, "upstream", 500), ("end", 0, False, "broken"),
        NEXT, ("asked", 1),
        ("head", 1, 200), ("body", 1, b"hello"), over(1),
    ]  # fmt: skip
    lucky = kinds(("c", GET), ("u-", 25), ("u", OK5))
    assert lucky[-1] == over(0)


def test_a_gap_beyond_a_length_body_leaves_the_next_one_sound() -> None:
    found = kinds(("c", GET), ("u", OK5[:-2]), ("u-", 300), ("c", GET), ("u", OK5))
    assert found[5:7] == [over(0), NEXT]
    assert found[-1] == over(1)


def test_a_gap_in_a_pipeline_gives_up_all_that_waits() -> None:
    found = kinds(("c", GET * 3), ("u", CHUNKED), ("u-", 5), ("c", GET), ("u", OK5))
    ends = [f for f in found if f[0] == "end"]
    assert ends == [
        ("end", 0, False, "broken"),
        ("end", 1, False, "broken"),
        ("end", 2, False, "broken"),
        over(3),
    ]


def test_a_gap_in_a_request_costs_that_request_only() -> None:
    upload = b"POST /api/blobs/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"a")
    found = kinds(("c", upload), ("c-", 10**9), ("c", b"tail\r\n"), ("c", LAST), ("u", OK5), ("c", GET), ("u", OK5))
    assert [f[0] for f in found] == ["ask", "ask body", "skip", "head", "body", "end", "ask", "asked", "head", "body", "end"]


def test_a_lost_client_is_not_found_before_its_answer() -> None:
    """Else an uploaded file that begins like a request would become one."""
    found = kinds(
        ("c", b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), ("c-", 10), ("c", GET), ("u", OK5), ("c", GET)
    )
    assert [f[:2] for f in found if f[0] == "ask"] == [("ask", 0), ("ask", 1)]


def test_a_gap_that_hides_whole_requests() -> None:
    found = kinds(("c-", 100), ("u", OK5), ("c", GET), ("u", OK5))
    assert found[:2] == [("skip", 0, "client", 100), ("head", 0, 200)]
    assert found[-1] == over(1)


def test_a_gap_over_both_sides() -> None:
    found = kinds(("c", GET), ("u", CHUNKED), ("u-", 400), ("c-", 100), ("u-", 30), ("c", GET), ("u", OK5))
    assert found[-3:] == [("head", 1, 200), ("body", 1, b"hello"), over(1)]


def test_gaps_where_nothing_is_lost() -> None:
    found = kinds(("c", b"GET / HTTP/1.0\r\n\r\n"), ("u", b"HTTP/1.0 200 OK\r\n\r\na"), ("u-", 7), ("u", b"b"), ("ue", None))
    assert found[3:] == [("body", 0, b"a"), ("skip", 0, "upstream", 7), ("body", 0, b"b"), over(0)]
    tunnel = kinds(("c", b"CONNECT h HTTP/1.1\r\n\r\n"), ("u", b"HTTP/1.1 200 OK\r\n\r\n"), ("u-", 9), ("c-", 9), ("ue", None))
    assert tunnel[-1] == ("end", 0, True, "upstream_eof")


def test_gaps_in_requests_that_end_in_them() -> None:
    ask = b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n"
    exact = kinds(("c", ask + b"ab"), ("c-", 7), ("u", OK5), ("c", GET))
    assert [f[0] for f in exact] == ["ask", "ask body", "skip", "asked", "head", "body", "end", "ask", "asked"]
    beyond = kinds(("c", ask + b"ab"), ("c-", 70), ("u", OK5), ("c", GET))
    assert [f[0] for f in beyond] == [f[0] for f in exact]
    bridged = kinds(("c", UPLOAD + b"9\r\nab"), ("c-", 5), ("c", b"cd\r\n" + LAST), ("c", GET))
    assert [f[0] for f in bridged] == ["ask", "ask body", "skip", "ask body", "asked", "ask", "asked"]
    tunnel = kinds(("c", CONNECT), ("c-", 9), ("u", EMPTY_404), ("c", GET))
    assert [f[0] for f in tunnel] == ["ask", "asked", "skip", "head", "end", "ask", "asked"]


def test_broken_chunks_from_the_client() -> None:
    found = kinds(("c", UPLOAD + chunk(b"ab") + b"zz\r\n"), ("c", b"more"), ("u", EMPTY_404))
    assert [f[0] for f in found] == ["ask", "ask body", "broken", "head", "end"]
    assert kinds(("c", b"\r\n"), ("c", b"\n")) == []


def test_a_monstrous_gap_is_not_walked_through() -> None:
    found = kinds(("c", GET), ("u", CHUNKED + b"ffffffff\r\na"), ("u-", 1 << 62), ("ue", None))
    assert found[-1] == ("end", 0, False, "upstream_eof")


# --- properties -------------------------------------------------------------------------------------------------------

CONVERSATION_CLIENT = (
    POST
    + b"HEAD / HTTP/1.1\r\n\r\n"
    + b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunk(b"a\r\n\r\nb")
    + LAST
    + GET
)
CONVERSATION_UPSTREAM = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    + CHUNKED + chunk(b"x\r\n\r\n") + chunk(b"\r\n0\r\n\r\n") + b"0\r\nT: x\r\n\r\n"
    + b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
    + OK5
    + CHUNKED + chunk("é🙂".encode()) + LAST
)  # fmt: skip


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted({i % (len(data) + 1) for i in at}), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


@settings(max_examples=150)
@given(st.lists(st.integers(0, 10**6), max_size=30), st.lists(st.integers(0, 10**6), max_size=30))
def test_11_any_cut_gives_the_same_events(client_cuts: list[int], upstream_cuts: list[int]) -> None:
    whole = kinds(("c", CONVERSATION_CLIENT), ("u", CONVERSATION_UPSTREAM), ("ue", None))
    pieces: list[Step] = [("c", p) for p in cut(CONVERSATION_CLIENT, client_cuts)]
    pieces += [("u", p) for p in cut(CONVERSATION_UPSTREAM, upstream_cuts)]
    assert kinds(*pieces, ("ue", None)) == whole


def test_11_byte_by_byte() -> None:
    whole = kinds(("c", CONVERSATION_CLIENT), ("u", CONVERSATION_UPSTREAM))
    assert [f[2] for f in whole if f[0] == "body"] == [b"x\r\n\r\n\r\n0\r\n\r\n", b"hello", "é🙂".encode()]
    pieces: list[Step] = [("c", bytes([b])) for b in CONVERSATION_CLIENT]
    assert kinds(*pieces, *[("u", bytes([b])) for b in CONVERSATION_UPSTREAM]) == whole


class Talk(NamedTuple):
    """One exchange to be spoken: how the request's and the answer's bodies are framed, and what comes before the answer."""

    method: str
    upload: bytes
    upload_chunks: int  # 0: by length
    interim: bool
    status: int
    download: bytes
    download_chunks: int


def _framed(body: bytes, chunks: int) -> bytes:
    """Header field and body."""
    if not chunks:
        return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    step = max(1, -(-len(body) // chunks))
    parts = [body[i : i + step] for i in range(0, len(body), step)]
    return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunk(part) for part in parts) + LAST


def _spoken(talks: list[Talk]) -> tuple[bytes, bytes, list[tuple[Any, ...]]]:
    """What client and upstream send, and what must be told of it (requests first)."""
    client, upstream = b"", b""
    asked: list[tuple[Any, ...]] = []
    answered: list[tuple[Any, ...]] = []
    for n, talk in enumerate(talks):
        client += talk.method.encode() + b" /%d HTTP/1.1\r\n" % n + _framed(talk.upload, talk.upload_chunks)
        asked += [("ask", n, talk.method), *([("ask body", n, talk.upload)] if talk.upload else []), ("asked", n)]
        if talk.interim:
            upstream += b"HTTP/1.1 100 Continue\r\n\r\n"
            answered.append(("1xx", n, 100))
        body = _framed(talk.download, talk.download_chunks)
        bare = talk.method == "HEAD" or talk.status in (204, 304)
        upstream += b"HTTP/1.1 %d X\r\n" % talk.status + (body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if bare else body)
        said = [("body", n, talk.download)] if talk.download and not bare else []
        answered += [("head", n, talk.status), *said, over(n)]
    return client, upstream, asked + answered


_BODIES = st.binary(max_size=30) | st.sampled_from([b"", b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
_TALKS = st.lists(
    st.builds(
        Talk,
        st.sampled_from(["GET", "POST", "HEAD", "BREW"]),
        _BODIES,
        st.integers(0, 4),
        st.booleans(),
        st.sampled_from([200, 204, 304, 404, 500]),
        _BODIES,
        st.integers(0, 4),
    ),
    max_size=6,
)


@settings(max_examples=200)
@given(_TALKS, st.lists(st.integers(0, 10**6), max_size=15), st.lists(st.integers(0, 10**6), max_size=15))
def test_11_any_pipelined_conversation_at_any_cut(talks: list[Talk], client_cuts: list[int], upstream_cuts: list[int]) -> None:
    client, upstream, expected = _spoken(talks)
    steps: list[Step] = [("c", piece) for piece in cut(client, client_cuts)]
    steps += [("u", piece) for piece in cut(upstream, upstream_cuts)]
    assert [f[:3] if f[0] == "ask" else f for f in kinds(*steps, ("ue", None), ("x", None))] == expected


_ANSWERS = [OK5, CHUNKED, chunk(b"a"), LAST, OK5[:20], b"HTTP/1.1 101 S\r\n\r\n", b"HTTP/1.1 200 K\r\n\r\n"]
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["c", "u"]), st.binary(max_size=40)),
        st.tuples(st.just("c"), st.sampled_from([GET, POST, GET[:9], CONNECT, HEAD])),
        st.tuples(
            st.just("u"),
            st.sampled_from(_ANSWERS),
        ),
        st.tuples(st.sampled_from(["c-", "u-"]), st.integers(0, 5000)),
        st.tuples(st.sampled_from(["ce", "cr", "ue", "ur"]), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=200)
@given(_STEPS)
def test_never_raises_and_every_request_ends_once(steps: list[Step]) -> None:
    http = HttpConnection()
    events = play([*steps, ("x", None)], http)
    asked = [e.n for e in events if isinstance(e, RequestHead)]
    ended = [e.n for e in events if isinstance(e, ResponseEnd)]
    heads = [e.n for e in events if isinstance(e, ResponseHead)]
    assert asked == sorted(set(asked))
    assert len(ended) == len(set(ended))
    assert len(heads) == len(set(heads))
    assert set(asked) | set(heads) == set(ended)
    assert all(len(e.evidence) <= 80 for e in events if isinstance(e, Broken))
    assert http.closed(Nanoseconds(0)) == []


def test_memory_stays_bounded_on_noise() -> None:
    noise = random.Random(7)
    http = HttpConnection()
    for _ in range(300):
        http.client(noise.randbytes(4096), Nanoseconds(0))
        http.upstream(noise.randbytes(4096), Nanoseconds(0))
    assert len(http._c_head) + len(http._u_head) <= 2 * MAX_HEAD + 8192
