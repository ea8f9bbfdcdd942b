"""The only socket of the probes: a request in, timed events out, straight to the upstream.

Rules that hold here:

- A read is stamped before anything is parsed, in the protocol's own `data_received`: an HTTP client's stream reader hands
  over later and may join reads. HTTP and the dialects are read by the very code that reads live traffic (`qm_proxy.wire`).
- One connection for each request, closed at its end. Cancelling closes the socket at once and fully; there is no half-close
  (Ollama answers one with silence) and no pool, so a model stops generating when its reader goes.
- The garbage collector rests while an answer streams.
- While it streams, a timer is due every 5 ms; when it fires late, this process was not let run, and `Answer.pauses` says
  from when to when. A chunk read then is late by our own doing: no gap is blamed on the model that this explains.
"""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from probes.ask import Answer, Ask
from qm_proxy import __version__
from qm_proxy.errors import SettingsError
from qm_proxy.events import Ending, Event, Nanoseconds
from qm_proxy.wire.coding import ContentDecoder
from qm_proxy.wire.decoder import Decoder
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.http import Broken, Headers, HttpConnection, HttpEvent, ResponseBody, ResponseEnd, ResponseHead
from qm_proxy.wire.routes import Route, route_of

__all__ = ["Client"]

_LARGEST_DOCUMENT = 64 * 1024 * 1024
"""A verbose /api/show of a large vocabulary is some 20 MB; more than this is not read."""


class Client:
    """Asks one upstream. Many asks may run at once; each has its own connection."""

    def __init__(self, upstream: str, run: str, *, connect_s: float = 10.0) -> None:
        bare = "//" not in upstream  # as OLLAMA_HOST may be given: a bare host means Ollama's own port
        parts = urlsplit(f"http://{upstream}" if bare else upstream)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise SettingsError(f"{upstream!r} is no upstream address.", remedy="Write it like http://127.0.0.1:11434.")
        self.upstream = upstream
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname, parts.hostname)
        self._port = port or (11434 if bare else 443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._authority = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path.rstrip("/")
        self._agent = f"qm-probe/{__version__} {run}"
        self._connect_s = connect_s
        self._current: _Exchange | None = None

    @property
    def quiet_s(self) -> float | None:
        """How long the request in flight has brought no byte; `None` when none is in flight."""
        return None if self._current is None else self._current.quiet_s

    async def ask(self, ask: Ask, on_event: Callable[[Event], None] | None = None) -> Answer:
        """Send `ask`, read to the end. Never raises for what the peer does: see `Answer.ending` and `.error`.

        `on_event` sees each event as it is decoded. Cancelling this call aborts the connection.
        """
        loop = asyncio.get_running_loop()
        request = self._request(ask)
        route = route_of(ask.method, ask.path.encode())
        exchange = _Exchange(ask, route, on_event, loop)
        before = time.monotonic_ns()
        try:
            async with asyncio.timeout(self._connect_s):
                transport, _ = await loop.create_connection(lambda: exchange, self._host, self._port, ssl=self._ssl)
        except (OSError, TimeoutError) as failure:
            now = time.monotonic_ns()
            reason = str(failure) or f"no connection within {self._connect_s:g} s"
            return Answer(ask.key, now, now, time.time(), ending="upstream_unreachable", error=reason)
        resting = gc.isenabled()
        gc.disable()
        pulse = _Pulse(loop, exchange.answer.pauses) if route.generation else None
        try:
            exchange.begin(request, before)
            self._current = exchange
            await exchange.over
        finally:
            self._current = None
            if pulse is not None:
                pulse.end()
            if resting:
                gc.enable()
            transport.abort()
        return exchange.answer

    def _request(self, ask: Ask) -> bytes:
        body = b"" if ask.body is None else json.dumps(ask.body, ensure_ascii=False, separators=(",", ":")).encode()
        head = [f"{ask.method} {self._prefix}{ask.path} HTTP/1.1", f"Host: {self._authority}", f"User-Agent: {self._agent}"]
        if ask.body is not None:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*head, "Accept: */*", "Connection: close", "", ""]).encode() + body


class _Pulse:
    """Notices when this process is not let run: a timer that fires late by more than `LATE_NS` was held up."""

    EVERY_S = 0.005
    LATE_NS = 4_000_000

    def __init__(self, loop: asyncio.AbstractEventLoop, pauses: list[tuple[int, int]]) -> None:
        self._loop = loop
        self._pauses = pauses
        self._arm()

    def _arm(self) -> None:
        self._due_ns = time.monotonic_ns() + int(self.EVERY_S * 1e9)
        self._timer = self._loop.call_later(self.EVERY_S, self._beat)

    def _beat(self) -> None:
        now = time.monotonic_ns()
        if now - self._due_ns > self.LATE_NS:
            self._pauses.append((self._due_ns, now))
        self._arm()

    def end(self) -> None:
        """Stop; a beat that is overdue now was held up until now."""
        self._timer.cancel()
        if (now := time.monotonic_ns()) - self._due_ns > self.LATE_NS:
            self._pauses.append((self._due_ns, now))


class _Exchange(asyncio.Protocol):
    """One request and its answer on one connection."""

    def __init__(self, ask: Ask, route: Route, on_event: Callable[[Event], None] | None, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[None] = loop.create_future()
        self.answer = Answer(ask.key)
        self._ask = ask
        self._route = route
        self._on_event = on_event
        self._loop = loop
        self._http = HttpConnection()
        self._coding = ContentDecoder("identity")
        self._decoder: Decoder | None = None
        self._document = bytearray()
        self._transport: asyncio.Transport | None = None
        self._last_ns = 0
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def begin(self, request: bytes, before_ns: int) -> None:
        assert self._transport is not None
        now = time.monotonic_ns()
        self.answer.at_unix_s = time.time()
        self.answer.connect_ns = now - before_ns
        self.answer.started_ns = self._last_ns = now
        self._http.client(request, Nanoseconds(now))
        self._transport.write(request)
        self._watch = self._loop.call_later(0.25, self._check_silence)

    def data_received(self, data: bytes) -> None:
        now = Nanoseconds(time.monotonic_ns())
        self._last_ns = now
        for event in self._http.upstream(data, now):
            self._see(event)

    def eof_received(self) -> None:
        now = Nanoseconds(time.monotonic_ns())
        for event in self._http.upstream_end("eof", now):
            self._see(event)
        self._end("upstream_truncated", now)

    def connection_lost(self, exc: Exception | None) -> None:
        now = Nanoseconds(time.monotonic_ns())
        if not self.over.done():
            for event in self._http.upstream_end("reset" if exc is not None else "eof", now):
                self._see(event)
            self._end("upstream_truncated", now, str(exc) if exc is not None else None)

    def _see(self, event: HttpEvent) -> None:
        if isinstance(event, ResponseHead):
            self.answer.status = event.status
            self.answer.head_ns = event.t_ns
            self._coding = ContentDecoder(_header(event.headers, b"content-encoding") or "identity")
            if self._route.generation:
                streamed = self._route.streams_by_default
                if self._ask.body is not None and isinstance(wanted := self._ask.body.get("stream"), bool):
                    streamed = wanted
                kind = _header(event.headers, b"content-type")
                self._decoder = decoder_for(self._route, streamed=streamed, status=event.status, content_type=kind)
        elif isinstance(event, ResponseBody):
            self._body(self._coding.feed(event.data), event.t_ns)
        elif isinstance(event, ResponseEnd):
            self._body(self._coding.close(), event.t_ns)
            self._end("complete" if event.clean else "upstream_truncated", event.t_ns)
        elif isinstance(event, Broken):
            self._end("upstream_truncated", event.t_ns, f"not readable as HTTP: {event.evidence}")

    def _body(self, data: bytes, t_ns: Nanoseconds) -> None:
        if self._decoder is not None:
            self._take(self._decoder.feed(data, t_ns))
        elif len(self._document) <= _LARGEST_DOCUMENT:
            self._document += data

    def _take(self, events: list[Event]) -> None:
        self.answer.events += events
        if self._on_event is not None:
            for event in events:
                self._on_event(event)

    def _end(self, ending: Ending, t_ns: Nanoseconds, error: str | None = None) -> None:
        if self.over.done():
            return
        if self._decoder is not None:
            self._take(self._decoder.close(ending, t_ns))
        answer = self.answer
        answer.ended_ns = t_ns
        answer.ending = ending
        if ending == "complete" and answer.cut is not None:
            answer.ending = answer.cut.ending
        answer.error = error
        if (failed := answer.failed) is not None:
            answer.ending, answer.error = "upstream_error", failed.message or f"status {failed.status}"
        elif self._decoder is None:
            self._read_document()
        elif answer.status is not None and answer.status >= 400:
            answer.ending, answer.error = "upstream_error", f"status {answer.status}"
        if self._watch is not None:
            self._watch.cancel()
        self.over.set_result(None)

    def _read_document(self) -> None:
        answer = self.answer
        try:
            answer.document = json.loads(self._document) if self._document else None
        except ValueError:
            answer.document = None
            if answer.error is None and answer.ending == "complete" and (answer.status or 0) < 400:
                answer.error = f"no JSON: {bytes(self._document[:80])!r}"
        if answer.status is not None and answer.status >= 400:
            answer.ending = "upstream_error"
            told = answer.document.get("error") if isinstance(answer.document, dict) else None
            answer.error = told if isinstance(told, str) else f"status {answer.status}"

    @property
    def quiet_s(self) -> float:
        return (time.monotonic_ns() - self._last_ns) / 1e9

    def _check_silence(self) -> None:
        now = time.monotonic_ns()
        quiet_s, whole_s = (now - self._last_ns) / 1e9, (now - self.answer.started_ns) / 1e9
        if quiet_s >= self._ask.silence_s:
            self.answer.silent = True
            self._end("upstream_truncated", Nanoseconds(now), f"no byte for {quiet_s:.0f} s")
        elif self._ask.limit_s is not None and whole_s >= self._ask.limit_s:
            self._end("upstream_truncated", Nanoseconds(now), f"not finished within {self._ask.limit_s:g} s")
        else:
            self._watch = self._loop.call_later(0.25, self._check_silence)


def _header(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)
