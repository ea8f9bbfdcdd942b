"""The heads of HTTP/1.x messages → first line, headers, and how long the body is. Pure, tolerant, never raises.

Rules that hold here:

- Read as Go's server reads (it is what answers): bare LF ends a line, any token is a method, a target is whatever stands
  between the blanks, values may be Latin-1 or UTF-8, folded lines are joined by one blank.
- A head that two readers could understand differently (two lengths, a length beside chunked, a length that is no number)
  has no body length here: `Framing.doubt` says why. RFC 9112 section 6.3; nothing is repaired.

llhttp is not used for heads: it refuses methods, targets and header names that Ollama answers, and has no way to be told
that a request was HEAD. It reads what is hot: chunk framing (see chunked.py).
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

__all__ = [
    "Framing",
    "Headers",
    "RequestLine",
    "StatusLine",
    "head_end",
    "request_framing",
    "request_head",
    "response_framing",
    "response_head",
]

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Names as sent (any case), values as sent; order and duplicates kept."""

_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) +(.*?) +(HTTP/1\.[01])", re.DOTALL)
_STATUS = re.compile(rb"HTTP/1\.([01]) +([1-9][0-9][0-9])(?: .*)?", re.DOTALL)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class RequestLine(NamedTuple):
    method: str
    target: bytes
    http_1_0: bool


class StatusLine(NamedTuple):
    status: int
    http_1_0: bool


class Framing(NamedTuple):
    """How a body ends: by `length`, by its last chunk, with the connection, or not at all (length 0)."""

    length: int = 0
    chunked: bool = False
    until_close: bool = False
    doubt: str | None = None  # why it cannot be known; then the other fields mean nothing


def head_end(data: bytes | bytearray, start: int = 0) -> int:
    """Index behind the blank line that ends a head, or -1. Looks at `data[start:]` only."""
    crlf = data.find(b"\n\r\n", start)
    lf = data.find(b"\n\n", start) if crlf < 0 else data.find(b"\n\n", start, crlf + 1)
    return lf + 2 if lf >= 0 else crlf + 3 if crlf >= 0 else -1


def request_head(raw: bytes) -> tuple[RequestLine | None, Headers, str | None]:
    """(request line or None when it is none, headers as far as readable, what is wrong or None)."""
    first, headers, wrong = _lines(raw)
    match = _REQUEST.fullmatch(first)
    if match is None:
        return None, headers, "no request line"
    method, target, version = match.groups()
    return RequestLine(method.decode("ascii"), target, version == b"HTTP/1.0"), headers, wrong


def response_head(raw: bytes) -> tuple[StatusLine | None, Headers, str | None]:
    """(status line or None when it is none, headers as far as readable, what is wrong or None)."""
    first, headers, wrong = _lines(raw)
    match = _STATUS.fullmatch(first)
    if match is None:
        return None, headers, "no status line"
    return StatusLine(int(match[2]), match[1] == b"0"), headers, wrong


def request_framing(line: RequestLine, headers: Headers) -> Framing:
    """A request's body: chunked, a length, or none."""
    codings, lengths = _body_fields(headers)
    if codings:
        if lengths:
            return Framing(doubt="a length beside Transfer-Encoding")
        if codings[-1] != b"chunked" or codings.count(b"chunked") > 1 or line.http_1_0:
            return Framing(doubt="Transfer-Encoding that does not say where the body ends")
        return Framing(chunked=True)
    return _by_length(lengths) or Framing()


def response_framing(line: StatusLine, headers: Headers, method: str | None) -> Framing:
    """A final response's body; `method` is its request's, None when that was not seen."""
    if method == "HEAD" or line.status in (204, 304):
        return Framing()
    codings, lengths = _body_fields(headers)
    if codings:
        if lengths:
            return Framing(doubt="a length beside Transfer-Encoding")
        if line.http_1_0 or b"chunked" in codings[:-1]:
            return Framing(doubt="Transfer-Encoding that does not say where the body ends")
        return Framing(chunked=True) if codings[-1] == b"chunked" else Framing(until_close=True)
    return _by_length(lengths) or Framing(until_close=True)


def _by_length(lengths: set[bytes]) -> Framing | None:
    if not lengths:
        return None
    if len(lengths) > 1:
        return Framing(doubt="two lengths")
    (length,) = lengths
    if _LENGTH.fullmatch(length) is None:
        return Framing(doubt="a length that is no number")
    return Framing(length=int(length))


def _body_fields(headers: Headers) -> tuple[list[bytes], set[bytes]]:
    codings: list[bytes] = []
    lengths: set[bytes] = set()
    for name, value in headers:
        if len(name) == 14 and name.lower() == b"content-length":
            lengths |= {part.strip() for part in value.split(b",")}
        elif len(name) == 17 and name.lower() == b"transfer-encoding":
            codings += [part.strip().lower() for part in value.split(b",")]
    return codings, lengths


def _lines(raw: bytes) -> tuple[bytes, Headers, str | None]:
    lines = [line[:-1] if line.endswith(b"\r") else line for line in raw.split(b"\n")]
    headers: list[tuple[bytes, bytes]] = []
    wrong: str | None = None
    for line in lines[1:]:
        if not line:
            continue
        if line[0] in b" \t":
            if headers:
                name, value = headers[-1]
                headers[-1] = (name, (value + b" " + line.strip(b" \t")).strip(b" "))
            else:
                wrong = "a folded line before any header"
            continue
        name, colon, value = line.partition(b":")
        if not colon or _NAME.fullmatch(name) is None:
            wrong = f"no header: {line[:40]!r}"
            continue
        headers.append((name, value.strip(b" \t")))
    return lines[0], tuple(headers), wrong
