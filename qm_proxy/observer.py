"""The second process's heart: batches from the relays → connections → exchanges → sinks. No sockets here; wiring feeds it.

Rules that hold here:

- Nothing here can touch a stream. Whatever fails is counted (`troubles`) and costs an observation, never traffic.
- The relay's offsets tell, connection by connection, what a dropped batch took. A connection that lost bytes is read on where
  that is sound, else given up until its next request begins; the others never notice.
- A new observer finds old connections in mid-stream. It counts their bytes and picks each up at its next request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from qm_proxy.events import HostSample, Nanoseconds, Residency
from qm_proxy.exchange import Exchange
from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Progress, Record
from qm_proxy.relay.pipe import LAG_UNKNOWN, Batch, Kind
from qm_proxy.sinks import Sink, unheard
from qm_proxy.wire.http import Broken, HttpConnection, HttpEvent, RequestHead, ResponseBody, ResponseEnd

__all__ = ["Fanout", "MakeExchange", "Observer"]

BREATH = 4
_T = TypeVar("_T")
_CLIENT_DATA = int(Kind.CLIENT_DATA)
_UPSTREAM_DATA = int(Kind.UPSTREAM_DATA)
_REQUEST_BEGINS = re.compile(rb"[A-Z]{3,16} \S+ HTTP/1\.[01]\r?\n")


class MakeExchange(Protocol):
    """Builds the Exchange of one request; given by wiring, which knows sinks, detectors and settings."""

    def __call__(self, head: RequestHead, connection: int, relay: int) -> Exchange: ...


class Fanout:
    """One Sink to the exchange, many behind it. A sink that raises is counted and does not stop the next."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self.sinks = list(sinks)
        self.failures: dict[str, int] = {}
        self._opened = [sink.opened for sink in self.sinks]
        self._progress = [sink.progress for sink in self.sinks if getattr(type(sink), "progress", None) is not unheard]
        self._found = [sink.found for sink in self.sinks]
        self._closed = [sink.closed for sink in self.sinks]

    def opened(self, opened: Opened) -> None:
        self._each(self._opened, opened)

    def progress(self, progress: Progress) -> None:
        self._each(self._progress, progress)

    def found(self, finding: Finding) -> None:
        self._each(self._found, finding)

    def closed(self, record: Record) -> None:
        self._each(self._closed, record)

    def _each(self, say: Iterable[Callable[[_T], None]], what: _T) -> None:
        for one in say:
            try:
                one(what)
            except Exception:
                name = type(getattr(one, "__self__", one)).__name__
                self.failures[name] = self.failures.get(name, 0) + 1


class _Connection:
    """One client connection as the copy shows it."""

    __slots__ = (
        "chunks",
        "client_bytes",
        "exchanges",
        "holed",
        "http",
        "key",
        "lags_ns",
        "peer",
        "relay",
        "t_ns",
        "upstream_bytes",
        "upstream_seen",
    )

    def __init__(self, relay: int, key: int, peer: str) -> None:
        self.relay = relay
        self.key = key
        self.peer = peer
        self.http: HttpConnection | None = HttpConnection()  # None: given up until a request begins
        self.exchanges: dict[int, Exchange] = {}
        self.client_bytes = 0  # the offset that comes next; -1: whatever comes is the next
        self.upstream_bytes = 0
        self.upstream_seen: int | None = None  # where `upstream_bytes` stood before it became -1, if it was known
        self.chunks: list[bytes] = []  # of the answer, not told yet, each with its stamp and lag
        self.t_ns: list[Nanoseconds] = []
        self.lags_ns: list[int] = []
        self.holed = False  # a batch was dropped since its last request began


class Observer:
    """Fed with batches; makes exchanges and tells them what happened. `status()` is what the console shows about it."""

    def __init__(self, make_exchange: MakeExchange, breathe: Callable[[], object] = lambda: None) -> None:
        """`breathe` is called every `BREATH` records: there the observer lets the relay have the core."""
        self._make = make_exchange
        self._breathe = breathe
        self._since_breath = 0
        self._connections: dict[int, dict[int, _Connection]] = {}  # by relay, by number
        self._last_sequence: dict[int, int] = {}  # by relay
        self.relays: dict[int, dict[str, Any]] = {}
        self.batches = self.records = self.exchanges_seen = 0
        self.batches_missed = self.bytes_missed = self.connections_given_up = 0
        self.first_sequence: dict[int, int] = {}
        self.troubles: dict[str, int] = {}

    # --- from the pipe ------------------------------------------------------------------------------------------------

    def take(self, batch: Batch) -> None:
        """All records of one batch, in order."""
        self.batches += 1
        relay = batch.relay
        last = self._last_sequence.get(relay)
        if last is None:
            self.first_sequence[relay] = batch.sequence
        else:
            self.batches_missed += (missed := max(0, batch.sequence - last - 1))
            for known in self._connections.get(relay, {}).values() if missed else ():
                known.holed = True
        self._last_sequence[relay] = batch.sequence
        connections = self._connections.setdefault(relay, {})
        brought: list[_Connection] = []  # on these, tokens wait in `chunks`: they are told together, before anything else is
        records, upstream_data = batch.records(), _UPSTREAM_DATA
        self.records += len(records)
        for kind, connection, t_ns, offset, lag_ns, data in records:
            try:
                if kind == upstream_data and (c := connections.get(connection)) is not None and offset == c.upstream_bytes:
                    c.upstream_bytes = offset + len(data)
                    http = c.http
                    if http is None:
                        continue
                    body = http.chunk(data)
                    if body is not None and lag_ns != LAG_UNKNOWN:
                        chunks = c.chunks
                        if not chunks:
                            brought.append(c)
                        chunks.append(body)
                        c.t_ns.append(t_ns)  # type: ignore[arg-type]
                        c.lags_ns.append(lag_ns)
                        continue
                    if c.chunks:
                        brought.remove(c)
                        self._brought(connections, c)
                    self._worked(BREATH)
                    self._answered(c, http.upstream(data, t_ns), t_ns, lag_ns)  # type: ignore[arg-type]
                    continue
                if brought:
                    self._all_brought(connections, brought)
                self._worked(BREATH if kind == _CLIENT_DATA else 1)  # a request is read, measured and told of: 0.3 ms
                self._record(connections, relay, kind, connection, Nanoseconds(t_ns), offset, lag_ns, data)
            except Exception as exc:
                self._trouble(exc)
                self._give_up(connections, connection, Nanoseconds(t_ns))
        self._all_brought(connections, brought)

    def _all_brought(self, connections: dict[int, _Connection], brought: list[_Connection]) -> None:
        for c in brought:
            self._worked(len(c.chunks))
            self._brought(connections, c)
        brought.clear()

    def _worked(self, records: int) -> None:
        """Of so many records the work begins: every few, whoever waits for this core gets it."""
        self._since_breath += records
        if self._since_breath >= BREATH:
            self._since_breath = 0
            self._breathe()

    def _brought(self, connections: dict[int, _Connection], c: _Connection) -> None:
        """The hot path: chunks of one answer, in order. (Of several connections nobody is told on which a token came first within
        a batch, unless something else happened between.)"""
        bodies, t_ns, lags_ns = c.chunks, c.t_ns, c.lags_ns
        c.chunks, c.t_ns, c.lags_ns = [], [], []
        if c.http is None:
            return
        n = c.http.answering
        exchange = c.exchanges.get(n)
        if exchange is None:
            return
        try:
            if len(bodies) > 1:
                exchange.see_chunks(n, bodies, t_ns, lags_ns)
            else:
                exchange.written(t_ns[0], lags_ns[0])
                exchange.see(ResponseBody(t_ns[0], n, bodies[0]))
        except Exception as exc:
            self._trouble(exc)
            self._give_up(connections, c.key, t_ns[-1])

    def _answered(self, c: _Connection, events: list[HttpEvent], t_ns: Nanoseconds, lag_ns: int) -> None:
        """What one read from the upstream brought."""
        told = -1
        for event in events:
            n = event.n
            exchange = c.exchanges.get(n)
            if exchange is None:
                continue
            if n != told:
                told = n
                exchange.written(t_ns, None if lag_ns == LAG_UNKNOWN else lag_ns)
            exchange.see(event)
            if type(event) is not ResponseBody:
                self._after(c, exchange, event)

    def _record(
        self,
        connections: dict[int, _Connection],
        relay: int,
        kind: int,
        connection: int,
        t_ns: Nanoseconds,
        offset: int,
        lag_ns: int,
        data: bytes,
    ) -> None:
        if kind == Kind.STATS:
            self.relays[relay] = json.loads(data)
            return
        if kind == Kind.OPENED:
            connections[connection] = _Connection(relay, connection, data.decode("utf-8", "replace"))
            return
        c = connections.get(connection)
        if c is None:
            if kind == Kind.CLOSED:
                return
            c = connections[connection] = _Connection(relay, connection, "")
            if kind != Kind.CLIENT_DATA or offset != 0:  # else only its opening was lost
                c.http = None
                c.client_bytes = c.upstream_bytes = -1
        if c.client_bytes < 0 and kind in (Kind.CLIENT_DATA, Kind.CLIENT_SKIPPED):
            c.client_bytes = offset
        elif c.upstream_bytes < 0 and kind in (Kind.UPSTREAM_DATA, Kind.UPSTREAM_SKIPPED):
            if c.upstream_seen is not None:
                self.bytes_missed += max(0, offset - c.upstream_seen)
            c.upstream_bytes, c.upstream_seen = offset, None
        if kind == Kind.UPSTREAM_DATA:
            if offset > c.upstream_bytes:
                self._skipped(c, "upstream", offset - c.upstream_bytes, t_ns, lost=True)
            c.upstream_bytes += len(data)
            if c.http is not None:
                self._answered(c, c.http.upstream(data, t_ns), t_ns, lag_ns)
        elif kind == Kind.CLIENT_DATA:
            self._client_data(c, t_ns, offset, data)
        elif kind == Kind.CLIENT_SKIPPED:
            self._skipped(c, "client", int.from_bytes(data, "little"), t_ns)
        elif kind == Kind.UPSTREAM_SKIPPED:
            self._skipped(c, "upstream", int.from_bytes(data, "little"), t_ns)
        elif kind in (Kind.CLIENT_SLOW, Kind.CLIENT_READY):
            for n, exchange in list(c.exchanges.items()):
                (exchange.client_slow if kind == Kind.CLIENT_SLOW else exchange.client_ready)(t_ns)
                if exchange.record is not None:
                    del c.exchanges[n]
        elif kind == Kind.REFUSED:
            for exchange in c.exchanges.values():
                exchange.refused(data.decode("utf-8", "replace"), t_ns)
        elif kind in (Kind.CUT, Kind.SHUTDOWN):
            for exchange in c.exchanges.values():
                (exchange.cut if kind == Kind.CUT else exchange.shutdown)(t_ns)
            c.exchanges.clear()
        elif kind == Kind.CLOSED:
            self._end(connections, c, t_ns)
        elif c.http is not None:
            if kind == Kind.CLIENT_EOF:
                for exchange in c.exchanges.values():
                    exchange.client_said_fin()
                self._tell(c, c.http.client_end("eof", t_ns))
            elif kind == Kind.CLIENT_RESET:
                self._tell(c, c.http.client_end("reset", t_ns))
            elif kind == Kind.UPSTREAM_EOF:
                self._tell(c, c.http.upstream_end("eof", t_ns))
            elif kind == Kind.UPSTREAM_RESET:
                self._tell(c, c.http.upstream_end("reset", t_ns))

    def _client_data(self, c: _Connection, t_ns: Nanoseconds, offset: int, data: bytes) -> None:
        if offset > c.client_bytes:
            self._skipped(c, "client", offset - c.client_bytes, t_ns, lost=True)
        c.client_bytes += len(data)
        if c.http is None:
            if not _REQUEST_BEGINS.match(data):
                return
            c.http, c.holed = HttpConnection(), False
        elif c.holed and _REQUEST_BEGINS.match(data):
            c.holed = False
            self._asks_again(c, t_ns)
        self._tell(c, c.http.client(data, t_ns))

    def _asks_again(self, c: _Connection, t_ns: Nanoseconds) -> None:
        """A client asks again when it has its answer: the dropped batch held the end of that, and maybe all of its request. The
        upstream's next bytes show how much it held; they belong to the new request."""
        for exchange in list(c.exchanges.values()):
            exchange.client_ready(t_ns)
            exchange.abandon(t_ns)
        c.exchanges.clear()
        c.http = HttpConnection()
        if c.upstream_bytes >= 0:
            c.upstream_bytes, c.upstream_seen = -1, c.upstream_bytes

    def _skipped(self, c: _Connection, side: str, n_bytes: int, t_ns: Nanoseconds, *, lost: bool = False) -> None:
        """`n_bytes` of one side passed uncopied (bounded copy), or were in a batch that the pipe dropped (`lost`)."""
        if side == "client":
            c.client_bytes += n_bytes
        else:
            c.upstream_bytes += n_bytes
        if lost:
            self.bytes_missed += n_bytes
        if c.http is not None:
            events = c.http.client_skipped(n_bytes, t_ns) if side == "client" else c.http.upstream_skipped(n_bytes, t_ns)
            self._tell(c, events)

    # --- to the exchanges ---------------------------------------------------------------------------------------------

    def _tell(self, c: _Connection, events: list[HttpEvent]) -> None:
        for event in events:
            exchange = c.exchanges.get(event.n)
            if exchange is None:
                if not isinstance(event, RequestHead):
                    continue
                exchange = c.exchanges[event.n] = self._make(event, c.key, c.relay)
                self.exchanges_seen += 1
            exchange.see(event)
            self._after(c, exchange, event)

    def _after(self, c: _Connection, exchange: Exchange, event: HttpEvent) -> None:
        if isinstance(event, ResponseEnd):
            if exchange.record is not None:
                c.exchanges.pop(event.n, None)
        elif isinstance(event, Broken):
            self.trouble(f"http {event.side}")

    def _end(self, connections: dict[int, _Connection], c: _Connection, t_ns: Nanoseconds) -> None:
        if c.http is not None:
            self._tell(c, c.http.closed(t_ns))
        for exchange in list(c.exchanges.values()):
            exchange.abandon(t_ns)
        connections.pop(c.key, None)

    def _give_up(self, connections: dict[int, _Connection], connection: int, t_ns: Nanoseconds) -> None:
        """Something of ours failed on this connection: end its exchanges as undecoded, read on at its next request."""
        c = connections.get(connection)
        if c is None:
            return
        self.connections_given_up += 1
        for exchange in list(c.exchanges.values()):
            try:
                exchange.abandon(t_ns)
            except Exception as exc:
                self._trouble(exc)
        c.exchanges.clear()
        c.http = None

    def _trouble(self, exc: Exception) -> None:
        self.trouble(f"{type(exc).__name__}: {exc}"[:120])

    def trouble(self, name: str) -> None:
        """Count something of ours that failed; at most a hundred different names."""
        if len(self.troubles) < 100 or name in self.troubles:
            self.troubles[name] = self.troubles.get(name, 0) + 1

    # --- from beside and from the clock -------------------------------------------------------------------------------

    def beside(self, event: HostSample | Residency) -> None:
        """Something happened beside the wire: every exchange in flight sees it."""
        for exchange in self.in_flight():
            exchange.beside(event)

    def tick(self, now_ns: Nanoseconds) -> None:
        """Called about twice a second: lets what waits for silence be noticed."""
        for exchange in self.in_flight():
            exchange.tick(now_ns)

    def relay_gone(self, relay: int, now_ns: Nanoseconds) -> None:
        """The relay ended (drained, stopped or died): its connections are over."""
        connections = self._connections.pop(relay, {})
        for c in list(connections.values()):
            self._end(connections, c, now_ns)
        self.relays.pop(relay, None)

    def in_flight(self) -> list[Exchange]:
        return [exchange for of in self._connections.values() for c in of.values() for exchange in c.exchanges.values()]

    def idle(self) -> dict[int, list[int]]:
        """Relay → its connections that are understood and on which nothing is under way."""
        return {
            relay: quiet
            for relay, connections in self._connections.items()
            if (quiet := [n for n, c in connections.items() if c.http is not None and not c.exchanges])
        }

    @property
    def connections(self) -> int:
        return sum(len(of) for of in self._connections.values())
