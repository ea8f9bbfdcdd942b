"""What the decoders of all dialects share: how an answer begins and ends, record streams, whole bodies, errors, the rest.

Answer ─┬─ ServerSentAnswer   an event stream, one dialect's record at a time
        ├─ WholeAnswer        a body that is read at its end
        │  ├─ ErrorBody       … with an error status: whatever it says becomes `Failed`
        │  └─ (a dialect's non-streamed answer)
        └─ Opaque             a body that nobody reads: only its end is told
"""

from __future__ import annotations

from qm_proxy.events import (
    Began,
    Cut,
    Deltas,
    EmptyRecord,
    Ending,
    Event,
    Failed,
    Finished,
    Malformed,
    Missed,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
)
from qm_proxy.wire.failures import failure_of_body
from qm_proxy.wire.framing import COMMENT, MAX_RECORD, ServerSent
from qm_proxy.wire.replies import Standing
from qm_proxy.wire.tolerant import evidence

__all__ = ["OVERLONG", "Answer", "ErrorBody", "Opaque", "ServerSentAnswer", "WholeAnswer", "count"]

OVERLONG = f"a record longer than {MAX_RECORD // 1024**2} MiB"


def count(value: object) -> int | None:
    """A server's count or duration; absent, zero, negative and absurd are unknown."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**63:
        return int(value)
    return None


class Answer:
    """The frame around an answer's payload. A dialect calls `_begin`, `_finish` and `_fail`; the rest follows."""

    def __init__(self) -> None:
        self._begun = False
        self._finished = False
        self._failed = False
        self._gap = False  # bytes were missed
        self._torn = False  # … and the next record may be only a part
        self._standing = Standing()

    def standing(self) -> Standing:
        return self._standing

    def deltas(self, kind: type[TextDelta | ThinkingDelta], bodies: list[bytes], t_ns: list[Nanoseconds]) -> Deltas | None:
        return None

    def missed(self, n_bytes: int, t_ns: Nanoseconds) -> list[Event]:
        self._gap = self._torn = True
        return [Missed(t_ns, n_bytes)]

    def _begin(self, out: list[Event], t_ns: Nanoseconds, model: object, answer_id: object, host: str | None = None) -> None:
        if not self._begun:
            self._begun = True
            self._standing.model = model if isinstance(model, str) and model else None
            self._standing.response_id = answer_id if isinstance(answer_id, str) and answer_id else None
            out.append(Began(t_ns, self._standing.model, self._standing.response_id, host))

    def _finish(self, out: list[Event], t_ns: Nanoseconds, reason: object) -> None:
        if not self._finished:
            self._finished = True
            out.append(Finished(t_ns, reason if isinstance(reason, str) and reason else None))

    def _fail(self, out: list[Event], failed: Failed) -> None:
        self._failed = True
        out.append(failed)

    def _malformed(self, out: list[Event], t_ns: Nanoseconds, raw: bytes | None) -> None:
        """A record could not be read. Right behind a gap that is no news: it is a part of what was missed."""
        if self._torn and raw is not None:
            self._torn = False
        else:
            out.append(Malformed(t_ns, OVERLONG if raw is None else evidence(raw)))

    def _end(self, out: list[Event], ending: Ending, t_ns: Nanoseconds) -> list[Event]:
        if self._finished:
            return out
        if self._failed:
            ending = "upstream_error"
        elif ending == "complete":
            if self._gap:  # the terminal record may lie in the gap: unknown, not missing
                self._finish(out, t_ns, None)
                return out
            ending = "upstream_truncated"
        self._finished = True
        out.append(Cut(t_ns, ending))
        return out


class ServerSentAnswer(Answer):
    """An event stream. A dialect implements `_record`, and `_last` when the end itself tells something."""

    def __init__(self) -> None:
        super().__init__()
        self._events = ServerSent()
        self._feed = self._events.feed

    def feed(self, data: bytes, t_ns: Nanoseconds) -> list[Event]:
        out: list[Event] = []
        for name, record in self._feed(data):
            if record is None:
                self._malformed(out, t_ns, None)
            elif name == COMMENT:
                out.append(EmptyRecord(t_ns))
            else:
                self._record(name, record, t_ns, out)
        return out

    def missed(self, n_bytes: int, t_ns: Nanoseconds) -> list[Event]:
        self._events.missed()
        return super().missed(n_bytes, t_ns)

    def close(self, ending: Ending, t_ns: Nanoseconds) -> list[Event]:
        out: list[Event] = []
        for name, record in self._events.close():
            if record is None:
                self._malformed(out, t_ns, None)
            elif name != COMMENT:
                self._tail(name, record, ending, t_ns, out)
        self._last(ending, t_ns, out)
        return self._end(out, ending, t_ns)

    def _tail(self, name: bytes, record: bytes, ending: Ending, t_ns: Nanoseconds, out: list[Event]) -> None:
        """A last record without its blank line: whole only if it can be read; cut short is no malformation."""
        if ending != "complete":
            self._torn = True
        self._record(name, record, t_ns, out)

    def _record(self, name: bytes, record: bytes, t_ns: Nanoseconds, out: list[Event]) -> None:
        raise NotImplementedError

    def _last(self, ending: Ending, t_ns: Nanoseconds, out: list[Event]) -> None:
        """The body is over and all its records were seen."""


class WholeAnswer(Answer):
    """A body that is one JSON document. A dialect implements `_body`, which answers whether it could read it."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._size = 0
        self._t_ns: Nanoseconds | None = None  # the read that brought the last byte

    def feed(self, data: bytes, t_ns: Nanoseconds) -> list[Event]:
        if data:
            self._t_ns = t_ns
            self._size += len(data)
            if self._size <= MAX_RECORD:
                self._pieces.append(data)
            else:
                self._pieces.clear()
        return []

    def close(self, ending: Ending, t_ns: Nanoseconds) -> list[Event]:
        out: list[Event] = []
        at = t_ns if self._t_ns is None else self._t_ns
        body = b"".join(self._pieces)
        self._pieces.clear()
        if self._size > MAX_RECORD:
            self._overlong(ending, at, out)
        elif not self._gap and not self._body(body, at, out) and ending == "complete" and body.strip():
            self._malformed(out, at, body)
        return self._end(out, ending, at)

    def _overlong(self, ending: Ending, t_ns: Nanoseconds, out: list[Event]) -> None:
        self._malformed(out, t_ns, None)

    def _body(self, body: bytes, t_ns: Nanoseconds, out: list[Event]) -> bool:
        raise NotImplementedError


class ErrorBody(WholeAnswer):
    """The body of a status ≥ 400, in any dialect's shape or none."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self._status = status

    def _body(self, body: bytes, t_ns: Nanoseconds, out: list[Event]) -> bool:
        self._fail(out, failure_of_body(t_ns, self._status, body))
        return True

    def _overlong(self, ending: Ending, t_ns: Nanoseconds, out: list[Event]) -> None:
        self._fail(out, Failed(t_ns, self._status, ""))


class Opaque(Answer):
    """A body that means nothing to us (lists, blobs, redirects): its end is all there is to tell."""

    def feed(self, data: bytes, t_ns: Nanoseconds) -> list[Event]:
        return []

    def close(self, ending: Ending, t_ns: Nanoseconds) -> list[Event]:
        out: list[Event] = []
        if ending == "complete":
            self._finish(out, t_ns, None)
        return self._end(out, ending, t_ns)
