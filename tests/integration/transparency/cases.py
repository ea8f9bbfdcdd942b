"""What happens between a client and Ollama, as data: each case moves both sides of a wire.

`CASES` maps a name to a function of (client, upstream). It must be deterministic: whoever sends is read before the next step,
or the step waits for what the kernel knows. The names follow relay-pitfalls: targets, heads, bodies, 1xx, old and odd,
ambiguity, ends, departures, half-closes, pipelines, garbage.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

from tests.integration.transparency.rig import Case, Side, in_background, pattern

__all__ = ["CASES"]

CASES: dict[str, Case] = {}

HOST = b"Host: 127.0.0.1:11436\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}"
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
RECORD = b'{"model":"m","message":{"role":"assistant","content":"to"},"done":false}\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def post(path: bytes = b"/api/chat", body: bytes = CHAT, fields: bytes = b"") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


def get(target: bytes, fields: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + HOST + fields + b"\r\n"


def case(name: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return add


def exchange(request: bytes, response: bytes = OK) -> Case:
    """One request, one answer, then the client goes."""

    def run(client: Side, upstream: Side) -> None:
        with in_background(lambda: client.send(request)):
            upstream.read(len(request))
        with in_background(lambda: upstream.send(response)):
            client.read(len(response))
        client.close()
        upstream.rest()

    return run


# --- targets, heads, bodies: what the request may look like ------------------------------------------------------------

TARGETS = {
    "plain": b"/api/tags",
    "escaped letter": b"/api/%63hat",
    "escaped slash": b"/api%2Ftags",
    "escaped dots": b"/%2e%2e/api/tags",
    "dot segments": b"/api/../api/./tags",
    "double slash": b"//api//tags",
    "bare question mark": b"/api/tags?",
    "fragment": b"/api/tags#part",
    "braces and bar": b"/api/{a|b}",
    "raw utf-8": "/api/größe/日本".encode(),
    "latin-1": b"/api/gr\xf6\xdfe",
    "invalid escape": b"/api/%zz%",
    "nul escape": b"/api/%00tags",
    "signed query": b"/api/tags?ts=1700000000&x=a+b%20c;d",
    "20 kB": b"/api/" + b"x" * 20_000,
    "absolute form": b"http://127.0.0.1:11434/api/tags",
    "asterisk": b"*",
    "authority": b"example.com:443",
    "backslash": b"\\api\\tags",
    "empty": b"",
}
for name, target in TARGETS.items():
    CASES[f"target: {name}"] = exchange(get(target))

HEADS = {
    "16 kB header": get(b"/", b"X-Big: " + b"a" * 16_000 + b"\r\n"),
    "60 kB header": get(b"/", b"X-Big: " + b"b" * 60_000 + b"\r\n"),
    "2 MB header": get(b"/", b"X-Big: " + b"c" * 2_000_000 + b"\r\n"),
    "150 headers": get(b"/", b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(150))),
    "5000 headers": get(b"/", b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(5000))),
    "latin-1 value": get(b"/", b"X-Name: J\xfcrgen\r\n"),
    "underscores": get(b"/", b"x_api_key: secret\r\nX-API-Key: other\r\n"),
    "obs-fold": get(b"/", b"X-Folded: one\r\n two\r\n\tthree\r\n"),
    "no user agent": b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "foreign host": b"GET /api/tags HTTP/1.1\r\nHost: evil.example.com\r\nOrigin: null\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "odd case and order": b"GET / HTTP/1.1\r\nuSeR-aGeNt: x\r\nHOST: h\r\nzzz: 1\r\nAAA: 2\r\nzzz: 3\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
    "hop by hop": get(b"/", b"Connection: X-Secret, keep-alive\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"),
    "x-accel": get(b"/", b"X-Accel-Buffering: no\r\nX-Forwarded-For: 1.2.3.4\r\n"),
    "secrets": get(b"/", b"Authorization: Bearer abc\r\nx-api-key: k\r\nCookie: a=b\r\n"),
    "upgrade": get(b"/", b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"),
    "h2c": get(b"/", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
    "bare line feeds": b"GET / HTTP/1.1\nHost: h\n\n",
    "empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "nul in a value": get(b"/", b"X: a\0b\r\n"),
    "lower case method": b"get / HTTP/1.1\r\nHost: h\r\n\r\n",
    "unknown method": b"FROBNICATE /api/tags HTTP/1.1\r\nHost: h\r\n\r\n",
    "trace": b"TRACE / HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n",
    "connect": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
    "options": b"OPTIONS /api/chat HTTP/1.1\r\nHost: h\r\nOrigin: http://localhost\r\n"
    b"Access-Control-Request-Method: POST\r\n\r\n",
    "preface of http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "http/0.9": b"GET /\r\n",
    "http/3.7": b"GET / HTTP/3.7\r\nHost: h\r\n\r\n",
}
for name, request in HEADS.items():
    CASES[f"head: {name}"] = exchange(request)

BODIES = {
    "invalid json": post(body=b'{"model": "m", "messages": [}'),
    "duplicate keys": post(body=b'{"model":"a","model":"b","n":123456789012345678901234567890}'),
    "gzip": post(body=gzip.compress(CHAT, mtime=0), fields=b"Content-Encoding: gzip\r\n"),
    "deflate": post(body=zlib.compress(CHAT), fields=b"Content-Encoding: deflate\r\n"),
    "zstd": post(body=b"\x28\xb5\x2f\xfd\x04\x00\x21\x00\x00abcd\xde\xad", fields=b"Content-Encoding: zstd\r\n"),
    "no content type": post(),
    "empty": post(body=b""),
    "binary": post(b"/api/blobs/sha256:ab", bytes(range(256)) * 64),
    "delete with body": b"DELETE /api/delete HTTP/1.1\r\n" + HOST + b'Content-Length: 13\r\n\r\n{"model":"m"}',
    "get with body": get(b"/", b"Content-Length: 4\r\n")[:-2] + b"\r\nbody",
    "chunked": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(CHAT) + b"0\r\n\r\n",
    "chunked with extensions and trailers": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5;name=value\r\nhello\r\n0;last\r\nX-Sum: 1\r\n\r\n",
    "chunked in upper case": b"POST / HTTP/1.1\r\n" + HOST + b"TRANSFER-ENCODING: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "1 MB": post(body=pattern(1_000_000)),
    "100 MB": post(body=b"\0\xff" * 50_000_000),
}
for name, request in BODIES.items():
    CASES[f"body: {name}"] = exchange(request)

AMBIGUOUS = {
    "two equal lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths that differ": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}abc",
    "length list": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2, 2\r\n\r\n{}",
    "length and chunked": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "negative length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "length with plus": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +2\r\n\r\n{}",
    "unknown coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "chunk size of 17 digits": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n",
}
for name, request in AMBIGUOUS.items():
    CASES[f"ambiguous: {name}"] = exchange(request)

# --- what the answer may look like ---------------------------------------------------------------------------------------

ANSWERS = {
    "stream": STREAM_HEAD + chunk(RECORD) * 5 + b"0\r\n\r\n",
    "stream with trailers": STREAM_HEAD + chunk(RECORD) + b"0\r\nX-Sum: 1\r\n\r\n",
    "chunk extensions": STREAM_HEAD + b"3;a=b\r\nabc\r\n0\r\n\r\n",
    "60 kB header": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "300 headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: v\r\n" % n for n in range(300)) + b"Content-Length: 0\r\n\r\n",
    "no content type, no date": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
    "odd reason": b"HTTP/1.1 200 J\xfcst fine\r\nContent-Length: 0\r\n\r\n",
    "status 299": b"HTTP/1.1 299 Whatever\r\nContent-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304 with length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "301": b"HTTP/1.1 301 Moved Permanently\r\nLocation: /api/tags\r\nContent-Length: 0\r\n\r\n",
    "403 empty": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\r\n404 page not found",
    "405": b"HTTP/1.1 405 Method Not Allowed\r\nAllow: POST\r\nContent-Length: 22\r\n\r\n405 method not allowed",
    "431 and close": b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n",
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "102 twice and 103": b"HTTP/1.1 102 Processing\r\n\r\n" * 2 + b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi",
    "two lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc",
    "length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
    "bad chunk": STREAM_HEAD + b"zz\r\nabc\r\n0\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "surplus bytes": OK + b"surplus",
    "duplicate headers in order": b"HTTP/1.1 200 OK\r\nSet-Cookie: b=1\r\nX: 1\r\nset-cookie: a=2\r\nContent-Length: 0\r\n\r\n",
    "x-accel": b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /secret\r\nX-Accel-Limit-Rate: 1\r\nContent-Length: 0\r\n\r\n",
    "http/1.0": b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "http/0.9": b"just a body",
    "garbage": b"\x00\x01\x02 this is no HTTP \xff\xfe\r\n\r\n",
    "8 MB line": STREAM_HEAD + chunk(b'{"a":"' + b"a" * 8_000_000 + b'"}\n') + b"0\r\n\r\n",
    "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 22\r\n\r\n" + gzip.compress(b"hi", mtime=0)[:22],
}
for name, response in ANSWERS.items():
    CASES[f"answer: {name}"] = exchange(post(), response)


@case("answer: to head, with a length and no body")
def _head(client: Side, upstream: Side) -> None:
    for _ in range(2):  # the second shows that nobody waited for a body
        exchange_on(client, upstream, b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")
    client.close()
    upstream.rest()


def exchange_on(client: Side, upstream: Side, request: bytes, response: bytes) -> None:
    client.send(request)
    upstream.read(len(request))
    upstream.send(response)
    client.read(len(response))


# --- cuts: every byte on its own -------------------------------------------------------------------------------------------


@case("cut: request byte by byte")
def _request_bytes(client: Side, upstream: Side) -> None:
    for n in range(len(request := post())):
        client.send(request[n : n + 1])
        upstream.read(1)
    upstream.send(OK)
    client.read(len(OK))
    client.close()
    upstream.rest()


@case("cut: answer byte by byte")
def _answer_bytes(client: Side, upstream: Side) -> None:
    client.send(post())
    upstream.read(len(post()))
    for n in range(len(answer := STREAM_HEAD + chunk(RECORD) + b"0\r\n\r\n")):
        upstream.send(answer[n : n + 1])
        client.read(1)
    client.close()
    upstream.rest()


@case("cut: both ways at once, byte by byte")
def _both_bytes(client: Side, upstream: Side) -> None:
    for n in range(200):
        client.send(bytes([n]))
        upstream.send(bytes([255 - n]))
        upstream.read(1)
        client.read(1)
    client.close()
    upstream.rest()


# --- ends ------------------------------------------------------------------------------------------------------------------

ANSWER = STREAM_HEAD + chunk(RECORD) * 3 + b"0\r\n\r\n"
MOMENTS: dict[str, tuple[bytes, bytes]] = {  # what has passed up and down when somebody goes
    "after connecting": (b"", b""),
    "mid-head": (post()[:20], b""),
    "mid-upload": (post()[:-10], b""),
    "before the first byte": (post(), b""),
    "mid-answer-head": (post(), STREAM_HEAD[:30]),
    "after the answer's head": (post(), STREAM_HEAD),
    "mid-chunk": (post(), STREAM_HEAD + chunk(RECORD)[:25]),
    "between tokens": (post(), STREAM_HEAD + chunk(RECORD)),
    "before the last chunk": (post(), STREAM_HEAD + chunk(RECORD) * 3),
    "mid-length": (post(), OK[:-1]),
    "close-delimited": (post(), b"HTTP/1.0 200 OK\r\n\r\nsome of it"),
    "after the answer": (post(), ANSWER),
    "mid-head of the second request": (post() + get(b"/")[:10], ANSWER),
    "before the second answer": (post() + get(b"/"), ANSWER),
    "in the second answer": (post() + get(b"/"), ANSWER + OK[:-1]),
}


def go(side: Side, how: str) -> None:
    {"fin": side.fin, "reset": side.reset, "close": side.close}[how]()


def departure(who: str, how: str, up: bytes, down: bytes) -> Case:
    """Somebody goes at a moment; the other sees how, and ends the same way."""

    def run(client: Side, upstream: Side) -> None:
        if up:
            client.send(up)
            upstream.read(len(up))
        if down:
            upstream.send(down)
            client.read(len(down))
        leaving, staying = (client, upstream) if who == "client" else (upstream, client)
        go(leaving, how)
        staying.rest()
        if how == "fin":  # the other way is still open
            staying.send(b"and on it goes")
            leaving.read(14)
            staying.close()
            leaving.rest()

    return run


for moment, (up, down) in MOMENTS.items():
    for who in ("client", "upstream"):
        for how in ("fin", "reset", "close"):
            CASES[f"departure: {who} {how} {moment}"] = departure(who, how, up, down)


@case("end: the client goes, the upstream writes on")
def _write_on(client: Side, upstream: Side) -> None:
    client.send(post())
    upstream.read(len(post()))
    client.close()
    upstream.rest()
    upstream.send(chunk(RECORD))
    upstream.hears_of_reset()
    assert upstream.send_fails()


@case("end: the client goes with unread bytes")
def _unread(client: Side, upstream: Side) -> None:
    client.send(post())
    upstream.read(len(post()))
    upstream.send(ANSWER)
    client.awaits(len(ANSWER))
    client.close()
    upstream.rest()


@case("end: the upstream goes with an unread request")
def _unread_request(client: Side, upstream: Side) -> None:
    client.send(post())
    upstream.awaits(len(post()))
    upstream.close()
    client.rest()


@case("end: both reset at once")
def _both_reset(client: Side, upstream: Side) -> None:
    client.reset()
    upstream.reset()


@case("end: both half-close, then nothing is left")
def _both_fin(client: Side, upstream: Side) -> None:
    client.fin()
    upstream.rest()
    upstream.fin()
    client.rest()


@case("end: both half-close at the same time with bytes in flight")
def _cross(client: Side, upstream: Side) -> None:
    client.send(b"from the client")
    client.fin()
    upstream.send(b"from upstream")
    upstream.fin()
    upstream.rest()
    client.rest()


@case("end: reset after a half-close, while nothing flows")
def _fin_then_reset(client: Side, upstream: Side) -> None:
    client.send(post())
    client.fin()
    upstream.rest()
    client.reset()
    upstream.hears_of_reset()
    assert upstream.send_fails()


@case("end: the upstream half-closes, then resets, while nothing flows")
def _upstream_fin_then_reset(client: Side, upstream: Side) -> None:
    upstream.send(OK)
    upstream.fin()
    client.rest()
    upstream.reset()
    client.hears_of_reset()
    assert client.send_fails()


@case("end: reset right behind the last bytes of an answer")
def _bytes_then_reset(client: Side, upstream: Side) -> None:
    client.send(post())
    upstream.read(len(post()))
    upstream.send(ANSWER)
    client.awaits(len(ANSWER))
    upstream.reset()
    client.hears_of_reset()
    client.rest()


@case("end: reset right behind a request")
def _request_then_reset(client: Side, upstream: Side) -> None:
    client.send(post())
    upstream.awaits(len(post()))
    client.reset()
    upstream.hears_of_reset()
    upstream.rest()


@case("end: half-close before the first byte leaves the answer's way open")
def _half_before(client: Side, upstream: Side) -> None:
    client.fin()
    upstream.rest()
    assert client.is_quiet()
    upstream.send(ANSWER)
    client.read(len(ANSWER))
    upstream.close()
    client.rest()


@case("end: idle connection, nothing happens")
def _idle(client: Side, upstream: Side) -> None:
    assert client.is_quiet()
    assert upstream.is_quiet()
    client.close()
    upstream.rest()


# --- pipelines, early answers --------------------------------------------------------------------------------------------


@case("pipeline: four requests in one write, answers in order")
def _pipeline(client: Side, upstream: Side) -> None:
    requests = get(b"/a") + get(b"/b") + post() + get(b"/d")
    client.send(requests)
    upstream.read(len(requests))
    for n in range(4):
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n)
    client.read(4 * 39)
    client.close()
    upstream.rest()


@case("pipeline: answers in one write")
def _pipeline_answers(client: Side, upstream: Side) -> None:
    client.send(get(b"/a"))
    upstream.read(len(get(b"/a")))
    client.send(get(b"/b"))
    upstream.read(len(get(b"/b")))
    upstream.send(OK + OK)
    client.read(2 * len(OK))
    client.close()
    upstream.rest()


@case("pipeline: the client leaves in the first answer")
def _leave_pipeline(client: Side, upstream: Side) -> None:
    requests = post() * 3
    client.send(requests)
    upstream.read(len(requests))
    upstream.send(STREAM_HEAD + chunk(RECORD))
    client.read(len(STREAM_HEAD + chunk(RECORD)))
    client.close()
    upstream.rest()


@case("pipeline: the upstream closes after the first answer")
def _close_in_pipeline(client: Side, upstream: Side) -> None:
    requests = get(b"/a") + get(b"/b")
    client.send(requests)
    upstream.read(len(requests))
    upstream.send(OK)
    upstream.close()
    client.rest()


@case("kept: ten exchanges on one connection")
def _kept(client: Side, upstream: Side) -> None:
    for n in range(10):
        exchange_on(client, upstream, post(body=b"x" * n), OK)
    client.close()
    upstream.rest()


@case("kept: the upstream drops an idle connection")
def _stale(client: Side, upstream: Side) -> None:
    exchange_on(client, upstream, post(), OK)
    upstream.close()
    client.rest()


@case("kept: the upstream has dropped it, the client posts once more")
def _stale_post(client: Side, upstream: Side) -> None:
    exchange_on(client, upstream, post(), OK)
    upstream.close()
    client.hears_of_its_end()
    client.send(post())
    client.hears_of_reset()
    client.rest()


@case("early: answer before the upload ends, the upload goes on")
def _early(client: Side, upstream: Side) -> None:
    body = pattern(300_000)
    client.send(post(b"/api/blobs/x", body)[:-100_000])
    upstream.read(1000)
    upstream.send(OK)
    client.read(len(OK))
    client.send(body[-100_000:])
    upstream.read(len(post(b"/api/blobs/x", body)) - 1000)
    client.close()
    upstream.rest()


@case("early: answer, then the upstream closes on the unread upload")
def _early_close(client: Side, upstream: Side) -> None:
    client.send(post(b"/api/blobs/x", pattern(200_000)))
    upstream.read(100)
    upstream.awaits(50_000)
    upstream.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!")
    upstream.close()
    client.hears_of_reset()
    client.rest()


@case("early: answer and half-close, the upload is still read")
def _early_fin(client: Side, upstream: Side) -> None:
    request = post(b"/api/blobs/x", pattern(200_000))
    client.send(request[:100_000])
    upstream.read(1000)
    upstream.send(OK)
    upstream.fin()
    client.rest()
    client.send(request[100_000:])
    client.fin()
    upstream.rest()


@case("early: expect, 100 from upstream only, then the body")
def _expect(client: Side, upstream: Side) -> None:
    head = b"POST /api/blobs/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    client.send(head)
    upstream.read(len(head))
    assert client.is_quiet()
    exchange_on(upstream, client, b"HTTP/1.1 100 Continue\r\n\r\n", b"hello")
    upstream.send(OK)
    client.read(len(OK))
    client.close()
    upstream.rest()


@case("early: expect, answered with a final status")
def _expect_final(client: Side, upstream: Side) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    client.send(head)
    upstream.read(len(head))
    upstream.send(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    upstream.close()
    client.rest()


# --- garbage, size --------------------------------------------------------------------------------------------------------

GARBAGE = {
    "random bytes": pattern(5000),
    "zeros": b"\0" * 5000,
    "tls hello": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + pattern(160),
    "a megabyte without a line end": b"a" * 1_000_000,
    "only line ends": b"\r\n" * 2000,
    "unfinished request": b"POST /api/chat HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf",
    "one byte": b"\n",
}
for name, data in GARBAGE.items():
    CASES[f"garbage: both ways, {name}"] = exchange(data, data)


def send_all_then_fin(side: Side, data: bytes) -> None:
    side.send(data)
    side.fin()


@case("size: 20 MB up and down at once")
def _big_both(client: Side, upstream: Side) -> None:
    up, down = pattern(20_000_000, 2), pattern(20_000_000, 3)
    with (
        in_background(lambda: client.send(up)),
        in_background(lambda: upstream.send(down)),
        in_background(lambda: upstream.read(len(up))),
    ):
        client.read(len(down))
    client.fin()
    upstream.rest()
    upstream.close()
    client.rest()


@case("size: 16 MB to a client that reads late")
def _late_reader(client: Side, upstream: Side) -> None:
    down = pattern(16_000_000, 4)
    with in_background(lambda: send_all_then_fin(upstream, down)):
        client.awaits(100_000)
        client.rest()
    client.close()
    upstream.rest()


@case("size: 16 MB to an upstream that reads late")
def _late_upstream(client: Side, upstream: Side) -> None:
    up = pattern(16_000_000, 5)
    with in_background(lambda: send_all_then_fin(client, up)):
        upstream.awaits(100_000)
        upstream.rest()
    upstream.close()
    client.rest()
