"""One exchange's time, divided: queue + load + prefill + decode + client wait + unexplained = total, to the nanosecond.

Rules that hold here:

- Total runs from the request's first byte to the moment the client had taken the answer's last one (the last byte read, where
  nobody learnt when it was taken).
- With the server's durations (native dialect): load, prefill and decode are the server's. Queue is what its own total leaves over
  before the first record: waiting for a free slot has no field of its own. Ollama 0.33 leaves 2–16 ms over for tokenising alone,
  so less than 50 ms (5 ms when other requests for the model were in flight) is no queue, and stays unexplained.
- Native `load_duration` starts when the head is read: it contains the upload of the body, which is taken out again.
- Without them (other dialects, errors, cut streams): decode is the span from first to last chunk; how the wait before it divides
  into queue, load and prefill cannot be known and is not guessed. It is in the unexplained row.
- Client wait is what the client made us wait: the upload of its request, and the time in which it did not take the answer.
  What the server computed meanwhile is the server's: only the rest of a pause is client wait.
- No row is negative. Rows are filled in the order upload, load, prefill, decode, pauses, queue; what would exceed the total is
  cut. When the server's own durations do, that is a contradiction, and it is said (`excess_ns`).
"""

from __future__ import annotations

from dataclasses import dataclass

from qm_proxy.events import Usage

__all__ = ["QUEUE_ALONE_NS", "QUEUE_IN_COMPANY_NS", "Observed", "Phases", "divide"]

QUEUE_ALONE_NS = 50_000_000
QUEUE_IN_COMPANY_NS = 5_000_000
_TOLERANCE_NS = 2_000_000  # two clocks and a network between them: a smaller excess is cut without a word


@dataclass(slots=True)
class Observed:
    """What our own clock saw of one exchange, ns. `None`: there was no such moment."""

    total_ns: int
    upload_ns: int = 0  # request's first byte → its last
    body_ns: int = 0  # request's head complete → its last byte: the part of the upload that the server sees
    paused_ns: int = 0  # the client did not take the answer and upstream was not read
    wait_ns: int | None = None  # request's last byte → first record, of a stream
    span_ns: int | None = None  # first chunk → last chunk of a stream, pauses left out; None below two chunks
    others: int | None = None  # requests for the same model in flight when this one came


@dataclass(slots=True)
class Phases:
    """The rows, ns. `None`: cannot be known; it then has no part in the sum."""

    total_ns: int
    queue_ns: int | None = None
    load_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    client_wait_ns: int = 0
    unexplained_ns: int = 0
    upload_ns: int = 0  # the part of client_wait_ns that was the upload
    excess_ns: int = 0  # by how much the claims exceeded the total; 0: they fitted


class _Rest:
    """What of the total is not yet given to a row."""

    __slots__ = ("excess", "left")

    def __init__(self, total: int) -> None:
        self.left = total
        self.excess = 0

    def upto(self, ns: int) -> int:
        granted = min(max(ns, 0), self.left)
        self.left -= granted
        return granted

    def all_of(self, ns: int) -> int:
        """As `upto`, and not to get it all is a contradiction."""
        granted = self.upto(ns)
        self.excess += max(ns, 0) - granted
        return granted


def divide(observed: Observed, server: Usage | None = None) -> Phases:
    """The rows of one exchange. `server` is the terminal record's account, if it has durations."""
    rest = _Rest(max(observed.total_ns, 0))
    phases = Phases(rest.left)
    phases.upload_ns = rest.all_of(observed.upload_ns)
    if server is None or (server.prefill_ns is None and server.decode_ns is None and server.load_ns is None):
        if observed.span_ns is not None:
            phases.decode_ns = rest.all_of(observed.span_ns)
        phases.client_wait_ns = phases.upload_ns + rest.upto(observed.paused_ns)
    else:
        load = server.load_ns or 0
        if observed.body_ns <= load:  # else this server counts otherwise
            load -= observed.body_ns
        phases.load_ns = None if server.load_ns is None else rest.all_of(load)
        phases.prefill_ns = None if server.prefill_ns is None else rest.all_of(server.prefill_ns)
        phases.decode_ns = None if server.decode_ns is None else rest.all_of(server.decode_ns)
        phases.client_wait_ns = phases.upload_ns + rest.upto(observed.paused_ns)
        queue = _queue(observed, server, load)
        phases.queue_ns = None if queue is None else rest.upto(queue)
    phases.unexplained_ns = rest.left
    phases.excess_ns = rest.excess if rest.excess >= _TOLERANCE_NS else 0
    return phases


def _queue(observed: Observed, server: Usage, load_ns: int) -> int | None:
    """The server's remainder, as far as it lies before the first record. None where the remainder is not a wait: embeddings
    report no prefill, and their computing is in the remainder."""
    if server.total_ns is None or (server.prefill_ns is None and server.decode_ns is None):
        return None
    before = (server.prefill_ns or 0) + load_ns
    remainder = server.total_ns - (server.load_ns or 0) - (server.prefill_ns or 0) - (server.decode_ns or 0)
    if observed.wait_ns is not None:
        remainder = min(remainder, observed.wait_ns - before)
    least = QUEUE_IN_COMPANY_NS if observed.others else QUEUE_ALONE_NS
    return remainder if remainder >= least else 0
