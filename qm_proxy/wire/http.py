"""The two byte streams of a connection → requests and their responses. httptools parses; no I/O, no clock.

Rules that hold here:

- The relay has already passed the bytes on. Nothing here can refuse, repair or delay them: what cannot be read becomes
  `Broken`, once for a connection, and the rest of it is passed over (counted by the caller).
- Exchanges of a connection are numbered from 0 in the order of their requests; the n-th final response answers the n-th
  request (pipelining, HEAD, 1xx, 204, 304, early answers, CONNECT and upgrades included).
- Bodies come out without chunk framing, still in their content coding.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from qm_proxy.events import Nanoseconds, event

__all__ = [
    "Broken",
    "Headers",
    "HttpEvent",
    "Informational",
    "RequestBody",
    "RequestEnd",
    "RequestHead",
    "ResponseBody",
    "ResponseEnd",
    "ResponseHead",
    "Side",
    "Skipped",
]

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Names as sent (any case), values as sent; order and duplicates kept."""

Side = Literal["client", "upstream"]


@event
class RequestHead:
    t_ns: Nanoseconds  # the read that completed the head
    first_ns: Nanoseconds  # the read that held its first byte
    n: int
    method: str
    target: bytes
    headers: Headers


@event
class RequestBody:
    t_ns: Nanoseconds
    n: int
    data: bytes


@event
class RequestEnd:
    """The whole request has passed."""

    t_ns: Nanoseconds
    n: int


@event
class Informational:
    """A 1xx answer before the final one."""

    t_ns: Nanoseconds
    n: int
    status: int


@event
class ResponseHead:
    t_ns: Nanoseconds
    n: int
    status: int
    headers: Headers


@event
class ResponseBody:
    t_ns: Nanoseconds
    n: int
    data: bytes


@event
class ResponseEnd:
    """The answer is over. `clean`: its framing was complete (length reached, last chunk, or FIN of a close-delimited one).
    `how` else: who ended it, and how. An exchange that never got a response ends with this too (no head before it)."""

    t_ns: Nanoseconds
    n: int
    clean: bool
    how: Literal["framing", "client_eof", "client_reset", "upstream_eof", "upstream_reset", "closed", "broken"]


@event
class Skipped:
    """The tap did not copy `n_bytes` of this side here (bounded). Framing may be lost: see `Broken` that may follow."""

    t_ns: Nanoseconds
    n: int
    side: Side
    n_bytes: int


@event
class Broken:
    """This side is not readable as HTTP from here on. `evidence` ≤ 80 characters."""

    t_ns: Nanoseconds
    n: int
    side: Side
    evidence: str


HttpEvent: TypeAlias = (
    RequestHead | RequestBody | RequestEnd | Informational | ResponseHead | ResponseBody | ResponseEnd | Skipped | Broken
)
