"""Every question asked of what was observed, by name: the Protocol, and the ring in memory that answers before there is a file.

Rules that hold here:

- Answers are JSON-ready and bear CONTRACT's names; unknown is null. Beside them stand a few more (`error`, `undecoded`, `doubts`,
  `withheld_tokens`, `cached_tokens`, and `phase` while in flight).
- Lists are newest first. A cursor is the id of the last item given: ids grow with time, so what arrives or leaves between two
  pages neither repeats an item nor hides one that is still kept.
- An exchange in flight is an exchange: it has its id from the start, `ending` null, and grows into the closed one in its place.
- Asked from any thread; told (as a Sink) from one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Any, Protocol, TypeAlias, TypeVar

from qm_proxy.findings import Finding
from qm_proxy.ids import unix_ms_of
from qm_proxy.measure.pieces import unpack_pieces
from qm_proxy.measure.series import unpack, written
from qm_proxy.measure.wall_clock import iso, unix_ns_of_iso
from qm_proxy.record import Opened, Progress, Record

__all__ = [
    "MAX_LIMIT",
    "Archive",
    "Json",
    "Queries",
    "Ring",
    "chunks_json",
    "finding_json",
    "opened_json",
    "pieces_json",
    "record_json",
]

Json: TypeAlias = dict[str, Any]
MAX_LIMIT = 500

_FINDINGS = 10_000
_IN_FLIGHT = 10_000  # beyond, the oldest are forgotten: their end was lost
_LATEST = ":latest"
_T = TypeVar("_T")


class Queries(Protocol):
    """What console, terminal and MCP ask. `ValueError` says what is wrong with a cursor, a limit or an instant."""

    def status(self) -> Json:
        """How much is kept: `exchanges`, `in_flight`, `findings`, `bytes`, `forgotten` (exchanges that had to leave)."""

    def exchanges(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        session: str | None = None,
        model: str | None = None,
        client: str | None = None,
        finding: str | None = None,
        since: str | None = None,
    ) -> Json:
        """`{"items", "next_cursor"}`. `finding`: a kind, or a family of them ("loop"). `since`: ISO instant, inclusive."""

    def exchange(self, exchange_id: str) -> Json | None:
        """One exchange, with captured content if there is any; None when it is not kept."""

    def chunks(self, exchange_id: str) -> Json | None:
        """Its series; None when it is not kept, still in flight, or had no chunk."""

    def findings(self, *, limit: int = 50, cursor: str | None = None, kind: str | None = None, since: str | None = None) -> Json:
        """`{"items", "next_cursor"}`. `kind`: a kind or a family. `since`: ISO instant of the finding, inclusive."""


class Archive(Queries, Protocol):
    """Queries of what only a database keeps: sessions, and the runs of probes."""

    def sessions(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        client: str | None = None,
        model: str | None = None,
        finding: str | None = None,
        since: str | None = None,
    ) -> Json:
        """`{"items", "next_cursor"}`, last active first."""

    def session(self, session_id: str, *, limit: int = 500, cursor: str | None = None) -> Json | None:
        """One session with its exchanges, oldest first; None when it is not kept."""

    def runs(self, *, limit: int = 50, cursor: str | None = None, state: str | None = None) -> Json:
        """`{"items", "next_cursor"}`, newest first."""

    def run(self, run_id: str) -> Json | None:
        """One run with its settings, its result and its report; None when it is not kept."""


# --- shapes ---------------------------------------------------------------------------------------------------------------


_NAMES = (
    "id", "started_at", "method", "route", "dialect", "operation", "model", "response_model", "streamed", "http_status", "ending",
    "phase", "session_id", "session_source", "turn", "client", "user_agent", "origin",
    "ttft_s", "ttft_content_s", "queue_s", "load_s", "prefill_s", "decode_s", "client_wait_s", "unexplained_s", "total_s",
    "slow_because", "itl", "tokens_per_s", "rate_source", "input_tokens", "output_tokens", "cached_tokens", "withheld_tokens",
    "chunks", "thinking_chunks", "context_window_tokens", "finish_reason", "tool_calls", "findings", "bytes_in", "bytes_out",
    "written_lag_s", "proxy_overhead_s", "trace_id", "error", "undecoded", "doubts",
)  # fmt: skip
"""The keys of an exchange, in the order in which they are told."""


def record_json(record: Record) -> Json:
    """A closed exchange, as CONTRACT names it."""
    told = {name: getattr(record, name, None) for name in _NAMES}
    told["itl"] = None if record.itl is None else asdict(record.itl)
    told["tool_calls"] = [asdict(call) for call in record.tool_calls]
    told["findings"] = _brief(record.findings)
    return told


def opened_json(opened: Opened, progress: Progress | None = None, findings: Iterable[Finding] = ()) -> Json:
    """An exchange in flight, in the shape of a closed one: what is not known yet is null. `phase` says what it is doing."""
    placed = opened.placed
    known: Json = {
        "id": opened.id,
        "started_at": opened.started_at,
        "method": opened.method,
        "route": opened.route,
        "dialect": opened.dialect,
        "operation": opened.operation,
        "model": opened.model,
        "streamed": opened.streamed,
        "phase": progress.phase if progress else "waiting",
        "session_id": placed.session_id if placed else None,
        "session_source": placed.source if placed else None,
        "turn": placed.turn if placed else None,
        "client": opened.client,
        "user_agent": opened.user_agent,
        "origin": opened.origin,
        "ttft_s": progress.ttft_s if progress else None,
        "tokens_per_s": progress.tokens_per_s if progress else None,
        "rate_source": "client" if progress and progress.tokens_per_s is not None else None,
        "chunks": progress.chunks if progress else 0,
        "tool_calls": [],
        "findings": _brief(findings),
        "doubts": [],
    }
    return dict.fromkeys(_NAMES) | known


def finding_json(finding: Finding) -> Json:
    """A detection, as CONTRACT names it."""
    return {
        "id": finding.id,
        "exchange_id": finding.exchange_id,
        "session_id": finding.session_id,
        "kind": finding.kind,
        "severity": finding.severity,
        "t_s": finding.t_s,
        "chunk": finding.chunk,
        "summary": finding.summary,
        "evidence": finding.evidence,
        "tokens_wasted": finding.tokens_wasted,
    }


def pieces_json(answer: bytes | None, thinking: bytes | None) -> Json:
    """How many characters of the captured texts came in each chunk of their kind; None where that is not known."""
    found: Json = {}
    for name, blob in (("answer", answer), ("thinking", thinking)):
        try:
            found[f"captured_{name}_pieces"] = None if blob is None else unpack_pieces(blob)
        except ValueError:  # damaged
            found[f"captured_{name}_pieces"] = None
    return found


def chunks_json(record: Record) -> Json | None:
    """Every chunk's time, unpacked, in ns since the request's first byte; None when there was none."""
    series = record.series
    if series is None:
        return None
    return {
        "format": 1,
        "start_unix_ns": series.start_unix_ns,
        "resolution_ns": series.resolution_ns,
        "arrival_ns": unpack(series.arrival),
        "written_ns": None if series.written is None else written(series.arrival, series.written),
        "kinds": [[kind, n] for kind, n in series.kinds],
        "coalesced": list(series.coalesced),
        "suspended": series.suspended,
    }


def _brief(findings: Iterable[Finding]) -> list[Json]:
    return [{"id": f.id, "kind": f.kind, "severity": f.severity} for f in findings]


# --- in memory ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kept:
    """One exchange. `record` None: in flight."""

    opened: Opened | None
    record: Record | None = None
    progress: Progress | None = None
    found: list[Finding] | None = None
    size: int = 0

    @property
    def started_at(self) -> str:
        return self.record.started_at if self.record else self.opened.started_at if self.opened else ""

    def json(self) -> Json:
        if self.record is not None:
            return record_json(self.record)
        assert self.opened is not None
        return opened_json(self.opened, self.progress, self.found or ())

    def fits(self, session: str | None, model: str | None, client: str | None, finding: str | None) -> bool:
        its = self.record or self.opened
        assert its is not None
        placed = its.placed if isinstance(its, Opened) else None
        its_session = its.session_id if isinstance(its, Record) else placed.session_id if placed else None
        findings = self.record.findings if self.record else self.found or []
        return (
            (session is None or its_session == session)
            and (model is None or _same_model(model, its.model))
            and (client is None or its.client == client)
            and (finding is None or any(_of_kind(f, finding) for f in findings))
        )


class Ring:
    """The latest exchanges, bounded by number and by bytes. A Sink, and the Queries on what it was told."""

    def __init__(self, limit: int = 2000, max_bytes: int = 64 * 1024 * 1024) -> None:
        """`limit`: closed exchanges kept. `max_bytes`: an estimate of what they hold; series and captured text weigh most."""
        self._limit = limit
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._kept: dict[str, _Kept] = {}
        self._ids: list[str] = []  # of `_kept`, ascending
        self._closed: deque[str] = deque()  # in the order of their end
        self._open: dict[str, None] = {}  # in the order of their beginning
        self._bytes = 0
        self._forgotten = 0
        self._found: dict[str, Finding] = {}
        self._found_ids: list[str] = []

    # --- as a sink ----------------------------------------------------------------------------------------------------

    def opened(self, opened: Opened) -> None:
        with self._lock:
            self._add(opened.id, _Kept(replace(opened, asked=None)))
            self._open[opened.id] = None
            while len(self._open) > _IN_FLIGHT:
                self._forget(next(iter(self._open)))

    def progress(self, progress: Progress) -> None:
        kept = self._kept.get(progress.id)
        if kept is not None:
            kept.progress = progress

    def found(self, finding: Finding) -> None:
        with self._lock:
            if finding.id not in self._found:
                insort(self._found_ids, finding.id)
            self._found[finding.id] = finding
            if len(self._found_ids) > _FINDINGS:
                del self._found[self._found_ids.pop(0)]
            kept = self._kept.get(finding.exchange_id or "")
            if kept is not None and kept.record is None:
                kept.found = [*(kept.found or ()), finding]

    def closed(self, record: Record) -> None:
        with self._lock:
            if record.id in self._kept:
                self._drop(record.id)
            slim = replace(record, opened=None)
            self._add(record.id, _Kept(None, slim, size=_weight(slim)))
            self._closed.append(record.id)
            self._bytes += _weight(slim)
            while len(self._closed) > self._limit or (self._bytes > self._max_bytes and len(self._closed) > 1):
                self._forget(self._closed[0])

    def _add(self, exchange_id: str, kept: _Kept) -> None:
        if exchange_id not in self._kept:
            insort(self._ids, exchange_id)
        self._kept[exchange_id] = kept

    def _drop(self, exchange_id: str) -> None:
        """Take it out of where it is; its id stays in place for what comes instead."""
        kept = self._kept[exchange_id]
        self._bytes -= kept.size
        self._open.pop(exchange_id, None)
        if kept.record is not None:
            self._closed.remove(exchange_id)

    def _forget(self, exchange_id: str) -> None:
        self._drop(exchange_id)
        del self._kept[exchange_id], self._ids[bisect_left(self._ids, exchange_id)]
        self._forgotten += 1

    # --- as queries ---------------------------------------------------------------------------------------------------

    def status(self) -> Json:
        with self._lock:
            return {
                "exchanges": len(self._closed),
                "in_flight": len(self._open),
                "findings": len(self._found),
                "bytes": self._bytes,
                "forgotten": self._forgotten,
            }

    def in_flight(self, model: str) -> int:
        """Requests for `model` that have no end yet."""
        with self._lock:
            opened = [self._kept[exchange_id].opened for exchange_id in self._open]
        return sum(o is not None and o.operation is not None and _same_model(model, o.model) for o in opened)

    def exchanges(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        session: str | None = None,
        model: str | None = None,
        client: str | None = None,
        finding: str | None = None,
        since: str | None = None,
    ) -> Json:
        least = None if since is None else iso(unix_ns_of_iso(since))

        def find(exchange_id: str) -> _Kept | None:
            kept = self._kept.get(exchange_id)  # None: it left meanwhile
            if kept is None or (least is not None and kept.started_at < least):
                return None
            return kept if kept.fits(session, model, client, finding) else None

        return _page(self._before(self._ids, cursor), find, _Kept.json, limit)

    def exchange(self, exchange_id: str) -> Json | None:
        kept = self._kept.get(exchange_id)
        if kept is None:
            return None
        record = kept.record
        if record is None or (record.captured_request is None and record.captured_answer is None):
            return kept.json()
        return kept.json() | {
            "captured_request": record.captured_request,
            "captured_answer": record.captured_answer,
            "captured_thinking": record.captured_thinking,
            **pieces_json(record.answer_pieces, record.thinking_pieces),
        }

    def chunks(self, exchange_id: str) -> Json | None:
        kept = self._kept.get(exchange_id)
        return None if kept is None or kept.record is None else chunks_json(kept.record)

    def findings(self, *, limit: int = 50, cursor: str | None = None, kind: str | None = None, since: str | None = None) -> Json:
        least_ms = None if since is None else unix_ns_of_iso(since) / 1e6

        def find(finding_id: str) -> Finding | None:
            found = self._found.get(finding_id)
            if found is None or (kind is not None and not _of_kind(found, kind)):
                return None
            return found if least_ms is None or unix_ms_of(finding_id) >= least_ms else None

        return _page(self._before(self._found_ids, cursor), find, finding_json, limit)

    def _before(self, ids: list[str], cursor: str | None) -> list[str]:
        """A copy of those older than the cursor, ascending."""
        if cursor is not None:
            try:
                unix_ms_of(cursor)
            except ValueError as exc:
                raise ValueError("Expected a cursor that a list gave as its next_cursor, found another text.") from exc
        with self._lock:
            return ids[:] if cursor is None else ids[: bisect_left(ids, cursor)]


def _page(ids: list[str], find: Callable[[str], _T | None], shape: Callable[[_T], Json], limit: int) -> Json:
    """The newest `limit` of those that `find` knows; a cursor only when there is at least one more."""
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"Expected a limit from 1 to {MAX_LIMIT}, found {limit}.")
    items: list[Json] = []
    for identifier in reversed(ids):
        found = find(identifier)
        if found is not None:
            if len(items) == limit:
                return {"items": items, "next_cursor": items[-1]["id"]}
            items.append(shape(found))
    return {"items": items, "next_cursor": None}


def _of_kind(finding: Finding, kind: str) -> bool:
    return finding.kind == kind or finding.kind.startswith(kind + ".")


def _same_model(one: str | None, other: str | None) -> bool:
    """A name without a tag means `:latest`."""
    return one is not None and other is not None and one.removesuffix(_LATEST) == other.removesuffix(_LATEST)


def _weight(record: Record) -> int:
    """About what a record holds, in bytes: its own objects, its series, its texts, its findings and calls."""
    weight = 3000 + 1500 * len(record.findings) + 400 * len(record.tool_calls)
    for text in (record.captured_request, record.captured_answer, record.captured_thinking):
        weight += 2 * len(text or "")
    weight += len(record.answer_pieces or b"") + len(record.thinking_pieces or b"")
    if record.series is not None:
        series = record.series
        weight += len(series.arrival) + len(series.written or b"") + 4 * len(series.coalesced) + 100 * len(series.kinds)
    return weight
