"""One request from its first byte to its last: HTTP events in, sinks told, a Record at the end.

    RequestHead ─▶ route ─▶ body ─▶ Asked ─▶ Opened ─▶ sinks, detectors made
    ResponseBody ─▶ coding ─▶ decoder ─▶ events ─┬─▶ timeline
                                                 └─▶ detectors ─▶ findings ─▶ sinks
    ResponseEnd ─▶ (a slow client takes the rest) ─▶ Record ─▶ sinks

Rules that hold here:

- Fed in the order of the relay's stamps; `written` comes before the events of its read. No clock but one look at the wall, once.
- How it ended: what we did ourselves (unreachable, guard, shutdown) goes first; then an error, which on a route that asks a model
  is any status ≥ 400 and anywhere an error record inside the answer; then the dialect's terminal record, behind which it does not
  matter who closed; then who ended it. Other routes are whole when their bytes are: a 404 of `/api/show` is a complete answer.
- Nothing is kept per token but numbers. Text flows by, except with `capture`. The request's messages are in what `opened`
  tells and not in the Record: sinks that need them take them there.
- What fails in here (decoder, detector, sink) is counted by name through `trouble`, and costs the rest of the exchange that part.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Literal, TypeAlias, TypeVar, cast

from qm_proxy.detect.detector import Detector, Listener, SeesDeltas
from qm_proxy.detect.ends import How
from qm_proxy.events import (
    Asked,
    Began,
    Cut,
    Deltas,
    Dialect,
    Ending,
    Event,
    Failed,
    Finished,
    HostSample,
    Missed,
    Nanoseconds,
    OfferedTool,
    Residency,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)
from qm_proxy.findings import Finding
from qm_proxy.ids import new_id
from qm_proxy.measure.pieces import pack_pieces
from qm_proxy.measure.timeline import Timeline, Timing
from qm_proxy.measure.wall_clock import iso
from qm_proxy.record import Opened, Progress, Record, ToolCallSeen
from qm_proxy.sinks import Sink
from qm_proxy.wire.clients import recognise
from qm_proxy.wire.coding import ContentDecoder
from qm_proxy.wire.decoder import Decoder
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.http import (
    Broken,
    Headers,
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
from qm_proxy.wire.replies import Standing
from qm_proxy.wire.request import read_request
from qm_proxy.wire.routes import route_of

__all__ = ["CAPTURE_BYTES", "MAX_BODY", "Exchange", "MakeDetectors"]

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request body that are copied; of a longer one the request stays unread."""
CAPTURE_BYTES = 1024 * 1024
"""With `capture`: so much of the request, the answer and the thinking is kept, each."""
PROGRESS_NS = 200_000_000
"""Five times a second: CONTRACT allows ten, nobody reads faster, and each one costs its sinks as much as ten tokens."""

BLOCK = 16
"""Deltas that `Listener`s get at once."""
_MAX_FINDINGS = 1000
_MAX_CALLS = 4096
_MAX_PAUSES = 64
_RESET_NS = 250_000_000  # a client that is gone has answered what is sent to it with a reset by then
_UPLOAD_NS = 500_000_000  # an upload longer than this is worth telling of
_STREAMS = ("application/x-ndjson", "text/event-stream")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-|$)")
_TIMING = tuple(field.name for field in fields(Timing))  # they bear the Record's names
_T = TypeVar("_T")
_How: TypeAlias = Literal["framing", "client_eof", "client_reset", "upstream_eof", "upstream_reset", "closed", "broken", "ours"]

_DecodeDeltas: TypeAlias = Callable[[type[TextDelta | ThinkingDelta], list[bytes], list[Nanoseconds]], Deltas | None]
_Seer: TypeAlias = Callable[[Event], Iterable[Finding]]
MakeDetectors: TypeAlias = Callable[[Opened], Sequence[Detector]]
"""Who watches an exchange, chosen when its request is known and sessions have placed it."""


class Exchange:
    """Made by the observer for each `RequestHead`. `record` is None until it is over."""

    __slots__ = (
        "__weakref__",
        "_after_fin",
        "_body",
        "_body_bytes",
        "_bytes_out",
        "_call_indices",
        "_capture",
        "_captured",
        "_captured_request",
        "_clean",
        "_coding",
        "_cut",
        "_decode_deltas",
        "_decoder",
        "_deltas_seers",
        "_detectors",
        "_ending",
        "_error",
        "_failed",
        "_feed",
        "_findings",
        "_finished",
        "_first_ns",
        "_forced",
        "_headers",
        "_listeners",
        "_make_detectors",
        "_method",
        "_opened",
        "_others",
        "_others_of",
        "_over_ns",
        "_pauses",
        "_progress_ns",
        "_response_model",
        "_route",
        "_said",
        "_said_kind",
        "_seers",
        "_sink",
        "_skipped_in",
        "_slow_since",
        "_status",
        "_timeline",
        "_timeline_see",
        "_tool_calls",
        "_trouble",
        "_undecoded",
        "_unix_ns",
        "_watchers",
        "_window_of",
        "_window_tokens",
        "connection",
        "id",
        "record",
        "started_at",
        "written",
    )

    def __init__(
        self,
        head: RequestHead,
        sink: Sink,
        *,
        connection: int = 0,
        detectors: MakeDetectors | None = None,
        window_of: Callable[[str | None], int | None] | None = None,
        others_of: Callable[[str], int | None] | None = None,
        unix_ns_of: Callable[[int], int] | None = None,
        capture: bool = False,
        trouble: Callable[[str], None] | None = None,
    ) -> None:
        """`window_of`: a loaded model's context window. `others_of`: how many requests for a model are in flight, this one not
        counted. `unix_ns_of`: the instant of a monotonic stamp; the machine's own clocks unless given."""
        self.connection = connection
        self.record: Record | None = None
        self._first_ns = head.first_ns
        self._method = head.method
        self._headers = head.headers  # until the request is read
        self._sink = sink
        self._make_detectors = detectors
        self._window_of = window_of
        self._others_of = others_of
        self._capture = capture
        self._trouble = trouble
        self._route = route_of(head.method, head.target)
        self._unix_ns = (unix_ns_of or _now_minus)(head.first_ns)
        self.id = new_id(self._unix_ns)
        self.started_at = iso(self._unix_ns)
        self._timeline = Timeline(head.first_ns, streamed=self._route.streams_by_default)
        self._timeline.head_ns = head.t_ns
        self._timeline_see = self._timeline.see  # looked up once: it is called per token
        self.written: Callable[[Nanoseconds, int | None], None] = self._timeline.written
        """Of each upstream read that holds bytes of this exchange, before its events: its stamp, and how much later the client
        had taken it (None: it is slow)."""
        self._progress_ns = head.first_ns + _UPLOAD_NS
        # the request
        self._body: list[bytes] | None = [] if self._route.dialect != "other" or self._route.operation else None
        self._body_bytes = 0
        self._skipped_in = 0
        self._opened: Opened | None = None
        self._others: int | None = None
        self._captured_request: str | None = None
        # the answer
        self._status: int | None = None
        self._coding: ContentDecoder | None = None
        self._decoder: Decoder | None = None
        self._feed: Callable[[bytes, Nanoseconds], list[Event]] | None = None  # its `feed`, behind the coding if there is one
        self._decode_deltas: _DecodeDeltas | None = None  # its `deltas`, if there is no coding
        self._bytes_out = 0
        self._watchers: Sequence[Detector] = ()
        self._seers: list[_Seer] = []  # of them, those who see every delta …
        self._deltas_seers: list[Callable[[Deltas], Iterable[Finding]]] = []  # … the same, for several at once …
        self._listeners: list[Listener] = []  # … and those who are told a block at a time
        self._said: list[str] = []  # the block
        self._said_kind: type[TextDelta | ThinkingDelta] | None = None  # when the latest event was such a delta
        self._detectors: list[Detector] = []
        self._captured: _Captured | None = None
        self._response_model: str | None = None
        self._window_tokens: int | None = None
        self._tool_calls: list[ToolCallSeen] = []
        self._call_indices: list[int] = []
        self._findings: list[Finding] = []
        self._finished = False
        self._failed: Failed | None = None
        self._error: str | None = None
        self._undecoded: str | None = None
        # the end
        self._forced: Ending | None = None
        self._cut: Ending | None = None  # what the decoder said
        self._clean: bool | None = None  # by HTTP framing, once it ended
        self._pauses: list[tuple[int, int]] = []  # the latest spans in which the client did not take what there was
        self._slow_since: int | None = None
        self._after_fin: tuple[int, int] | None = None  # first and latest read that a client took after its FIN
        self._over_ns: Nanoseconds | None = None  # the last byte, or what came instead
        self._ending: Ending = "complete"
        if self._body is None:
            self._open()
        elif (told := _header(head.headers, b"content-length") or "").isdecimal() and len(told) < 20 and int(told) > MAX_BODY:
            self._body = None  # it will not be read: none of it needs to be held

    # --- what the observer tells --------------------------------------------------------------------------------------

    def see(self, event: HttpEvent) -> None:
        """The next HTTP event of this exchange. After the end nothing is heard any more."""
        if type(event) is not ResponseBody:
            self._hear(event)
            return
        data, t_ns = event.data, event.t_ns  # from here on, once per token
        self._bytes_out += len(data)
        feed = self._feed
        if feed is None:
            return
        try:
            events = feed(data, t_ns)
        except Exception as exc:
            self._decoder_failed(exc)
            return
        for found in events:
            if self._timeline_see(found) or self._said_kind is None:
                self._show(found)
                continue
            said = self._said  # one more delta of the same kind
            said.append(found.text)  # type: ignore[union-attr]
            if len(said) >= BLOCK:
                self._hand_on()
            for seer in self._seers:
                try:
                    for finding in seer(found):
                        self.add(finding)
                except Exception as exc:
                    self._drop(seer, exc)
        if t_ns >= self._progress_ns:
            self._progress(t_ns)

    def see_chunks(self, n: int, bodies: list[bytes], t_ns: list[Nanoseconds], lags_ns: list[int]) -> None:
        """Chunks of the answer, each of a read of its own: `written` and `see` for each, at half the price where they are nothing
        but more deltas of the kind before."""
        deltas = self._plain_deltas(bodies, t_ns)
        if deltas is None or not self._timeline.deltas(deltas.kind, t_ns, lags_ns):
            for body, at, lag_ns in zip(bodies, t_ns, lags_ns, strict=True):
                self.written(at, lag_ns)
                self.see(ResponseBody(at, n, body))
            return
        self._bytes_out += sum(map(len, bodies))
        said = self._said
        said += deltas.texts
        if len(said) >= BLOCK:
            self._hand_on()
        for seer in self._deltas_seers:
            try:
                for finding in seer(deltas):
                    if finding.chunk is None:
                        finding.chunk = self._timeline.n - len(bodies) + bisect_left(t_ns, finding.t_ns)
                    self.add(finding)
            except Exception as exc:
                self._drop(seer, exc)
        if t_ns[-1] >= self._progress_ns:
            self._progress(t_ns[-1])

    def _plain_deltas(self, bodies: list[bytes], t_ns: list[Nanoseconds]) -> Deltas | None:
        decode, kind = self._decode_deltas, self._said_kind
        if decode is None or kind is None:
            return None
        try:
            return decode(kind, bodies, t_ns)
        except Exception:
            return None  # `see` will tell

    def _hear(self, event: HttpEvent) -> None:
        if self.record is not None:
            return
        match event:
            case RequestBody():
                self._request_body(event)
            case RequestEnd():
                self._timeline.asked_ns = event.t_ns
                self._open()
            case ResponseHead():
                self._answer(event)
            case ResponseEnd():
                self._end(event.how, event.clean, event.t_ns)
            case Skipped(side="client"):
                self._skipped_in += event.n_bytes
                self._body_bytes += event.n_bytes
                self._body = None
            case Skipped():
                self._bytes_out += event.n_bytes
                self._missed(event.n_bytes, event.t_ns)
            case Broken():
                self._undecodable(f"the {event.side}'s bytes are not readable as HTTP: {event.evidence}")
            case Informational() | RequestHead() | ResponseBody():
                pass

    def client_slow(self, t_ns: Nanoseconds) -> None:
        """The client does not take what there is."""
        if self.record is None and self._status is not None:
            self._slow_since = t_ns if self._slow_since is None else self._slow_since
            self._timeline.client_slow(t_ns)

    def client_ready(self, t_ns: Nanoseconds) -> None:
        """The client has taken all of it."""
        if self.record is None:
            if self._slow_since is not None:
                self._pauses = [*self._pauses[1 - _MAX_PAUSES :], (self._slow_since, t_ns)]
                self._slow_since = None
            self._timeline.client_ready(t_ns)
            if self._over_ns is not None:
                self._close(self._over_ns)

    def client_said_fin(self) -> None:
        """The client sends no more; whether it still reads is seen by what it takes from now on."""
        if self.record is None:
            self.written, self._decode_deltas = self._written_after_fin, None

    def suspended(self) -> None:
        """The machine slept just now."""
        if self.record is None:
            self._timeline.suspended()

    def refused(self, reason: str, t_ns: Nanoseconds) -> None:
        """The upstream could not be reached; our own answer follows."""
        self._forced = "upstream_unreachable"
        self._error = reason[:200]

    def cut(self, t_ns: Nanoseconds) -> None:
        """The guard's bytes were written and the upstream closed."""
        self._forced = "guard_cut"
        self._end("ours", False, t_ns)

    def shutdown(self, t_ns: Nanoseconds) -> None:
        """The proxy ended this connection because it was stopped."""
        if not self._finished:
            self._forced = "shutdown"
        self._end("ours", False, t_ns)

    def abandon(self, t_ns: Nanoseconds) -> None:
        """The connection is gone and no end was told."""
        if self._over_ns is None:
            self._end("closed", False, t_ns)
        elif self.record is None:  # it left before it had taken all
            if self._ending == "complete":
                self._ending = "client_disconnect"
            self._close(t_ns)

    def beside(self, event: Event) -> None:
        """Something happened beside the wire (a host sample, what is loaded): detectors see it."""
        if self.record is None:
            self._timeline_see(event)
            self._show(event)

    def tick(self, now_ns: Nanoseconds) -> None:
        """Time passed without bytes: tells of the wait."""
        if self.record is None and now_ns >= self._progress_ns:
            self._progress(now_ns)

    def add(self, finding: Finding) -> None:
        """A finding about this exchange, from a detector or from who looks across exchanges."""
        finding.id = finding.id or new_id(self._unix_ns + finding.t_ns - self._first_ns)
        finding.exchange_id = self.id
        finding.t_s = max(finding.t_ns - self._first_ns, 0) / 1e9
        if finding.chunk is None and self._timeline.n:
            finding.chunk = self._timeline.n - 1
        if finding.session_id is None and self._opened is not None and self._opened.placed is not None:
            finding.session_id = self._opened.placed.session_id
        if self.record is None:
            if len(self._findings) >= _MAX_FINDINGS:
                self._count("findings beyond 1000 in one exchange")
                return
            self._findings.append(finding)
        self._tell(self._sink.found, finding)

    def client_slow_ns(self, from_ns: int, to_ns: int) -> int:
        """For how long in this span the client did not take what there was."""
        pauses = self._pauses if self._slow_since is None else [*self._pauses, (self._slow_since, to_ns)]
        return sum(max(min(end, to_ns) - max(start, from_ns), 0) for start, end in pauses)

    def how(self) -> How:
        """What the connection knows about the end, for detectors."""
        first, last = self._after_fin or (0, 0)
        return How(self._clean, client_half_closed=last - first >= _RESET_NS)

    @property
    def dialect(self) -> Dialect:
        return self._route.dialect

    def standing(self) -> Standing | None:
        """What a terminal record of ours would have to repeat (wire.replies.clean_end); None before the answer."""
        return None if self._decoder is None else self._decoder.standing()

    # --- the request --------------------------------------------------------------------------------------------------

    def _request_body(self, event: RequestBody) -> None:
        self._body_bytes += len(event.data)
        if self._body is not None:
            if self._body_bytes <= MAX_BODY:
                self._body.append(event.data)
            else:
                self._body = None
        if event.t_ns >= self._progress_ns:
            self._progress(event.t_ns)

    def _open(self) -> None:
        """The request is known, or as much of it as there will be."""
        if self._opened is not None:
            return
        headers, route = self._headers, self._route
        asked = self._read_body() if route.dialect != "other" or route.operation else None
        client = recognise(headers, asked)
        self._opened = opened = Opened(
            id=self.id,
            t_ns=self._first_ns,
            started_at=self.started_at,
            method=self._method,
            route=route.path,
            dialect=route.dialect,
            operation=route.operation,
            model=asked.model if asked else None,
            streamed=asked.streamed if asked else route.streams_by_default,
            client=client.client,
            user_agent=client.user_agent,
            origin=client.origin,
            asked=asked,
            hints=client.hints,
            traceparent=_header(headers, b"traceparent"),
            tracestate=_header(headers, b"tracestate"),
            connection=self.connection,
        )
        self._headers = ()
        self._timeline.streamed = opened.streamed
        if opened.model is not None and self._others_of is not None and route.generation:
            self._others = self._others_of(opened.model)
        self._tell(self._sink.opened, opened)
        if route.generation and self._make_detectors is not None:
            try:
                self._detectors = list(self._make_detectors(opened))
            except Exception as exc:
                self._count(f"detectors: {type(exc).__name__}")
        self._make_detectors = None  # it may know this exchange: no circle is left to the garbage collector
        watchers = self._detectors
        if self._capture and route.operation is not None:
            self._captured = _Captured()
            watchers = [*watchers, self._captured]
        self._watch(watchers)
        if asked is not None:  # of the request only its numbers are kept while the answer runs
            tools = tuple(OfferedTool(tool.name, tool.kind) for tool in asked.tools)
            told = self._capture and asked.body_bytes <= CAPTURE_BYTES  # for spans with content
            self._opened = replace(opened, asked=replace(asked, messages=asked.messages if told else (), tools=tools))

    def _read_body(self) -> Asked | None:
        """The request's body, read once; None when there is no sound copy of it."""
        pieces, self._body = self._body, None
        if self._timeline.asked_ns is None:
            return None  # it never came to its end
        if pieces is None:
            why = f"{self._skipped_in:,} bytes of it were not copied" if self._skipped_in else f"longer than {MAX_BODY:,} bytes"
            self._undecodable(f"the request's body: {why}")
            return None
        body = b"".join(pieces)
        if not body and self._route.operation is None:
            return None
        try:
            asked = read_request(self._route, self._headers, body, Nanoseconds(self._timeline.asked_ns))
        except Exception as exc:
            self._count(f"request: {type(exc).__name__}")
            self._undecodable(f"the request's body: {type(exc).__name__}")
            return None
        if self._capture and self._route.operation is not None:
            coding = ContentDecoder(_header(self._headers, b"content-encoding") or "", limit=MAX_BODY)
            self._captured_request = coding.feed(body)[:CAPTURE_BYTES].decode("utf-8", "replace")
        return asked

    # --- the answer ---------------------------------------------------------------------------------------------------

    def _answer(self, head: ResponseHead) -> None:
        self._open()  # an answer before the request's end
        opened = self._opened
        assert opened is not None
        self._status = head.status
        self._timeline.answered_ns = head.t_ns
        content_type = _header(head.headers, b"content-type")
        self._timeline.streamed = self._is_stream(opened, head.status, content_type)
        self._progress_ns = head.t_ns
        self._decoder = decoder = decoder_for(
            self._route, streamed=opened.streamed, status=head.status, content_type=content_type
        )
        self._feed, self._decode_deltas = decoder.feed, decoder.deltas
        if encoding := _header(head.headers, b"content-encoding"):
            self._coding = coding = ContentDecoder(encoding)
            self._feed, self._decode_deltas = lambda data, t_ns: decoder.feed(coding.feed(data), t_ns), None

    def _is_stream(self, opened: Opened, status: int, content_type: str | None) -> bool:
        """Whether the answer comes record by record: its Content-Type tells, not what was asked (an error comes whole). Native
        streams of one record, and imitations of Ollama, call their lines JSON."""
        kind = (content_type or "").partition(";")[0].strip().lower()
        if kind in _STREAMS:
            return True
        return opened.streamed and 200 <= status < 300 and (opened.dialect == "ollama" or not kind.endswith("json"))

    def _show(self, event: Event) -> None:
        """One event, which the timeline has seen, to us and everybody who watches."""
        kind = type(event)
        if self._said:
            self._hand_on()
        delta = isinstance(event, TextDelta | ThinkingDelta)
        if delta:
            self._said_kind = kind  # type: ignore[assignment]
            self._said.append(event.text)  # type: ignore[union-attr]
        elif kind is not HostSample and kind is not Residency:
            self._said_kind = None
            self._take(event)
        for seer in self._seers if delta else [watcher.see for watcher in self._watchers]:
            try:
                for finding in seer(event):
                    self.add(finding)
            except Exception as exc:
                self._drop(seer, exc)

    def _hand_on(self) -> None:
        """What was said since the last time, to those who take it in blocks."""
        said, kind = self._said, self._said_kind
        self._said = []
        assert kind is not None
        for listener in self._listeners:
            try:
                listener.said(kind, said)
            except Exception as exc:
                self._drop(listener.said, exc)

    def _drop(self, call: Callable[..., object], exc: Exception) -> None:
        """This one fails: the rest of the exchange goes without it."""
        owner = getattr(call, "__self__", call)
        self._count(f"detector {type(owner).__name__}: {type(exc).__name__}")
        self._watch([other for other in self._watchers if other is not owner])

    def _watch(self, watchers: Sequence[Detector]) -> None:
        self._watchers = watchers
        alone = [one for one in watchers if not hasattr(one, "said")]
        self._seers = [one.see for one in alone]
        self._deltas_seers = [one.deltas if isinstance(one, SeesDeltas) else _OneByOne(one) for one in alone]
        self._listeners = [cast(Listener, one) for one in watchers if hasattr(one, "said")]

    def _take(self, event: Event) -> None:
        """What the exchange itself wants to know of the answer."""
        match event:
            case Began():
                self._response_model = event.response_model or self._response_model
            case ToolCall() if len(self._tool_calls) < _MAX_CALLS:
                t_s = max(event.t_ns - self._first_ns, 0) / 1e9
                size = len(event.arguments.encode("utf-8", "surrogatepass"))
                self._tool_calls.append(ToolCallSeen(event.call_id, event.name, t_s, size))
                self._call_indices.append(event.index)
            case Finished():
                self._finished = True
            case Cut():
                self._cut = event.ending
            case Failed():
                self._failed = event
                self._error = self._error or event.message[:200] or None
                self._window_tokens = event.n_ctx or self._window_tokens
            case Missed():
                self._undecodable(f"{event.n_bytes:,} bytes of the answer were not copied")
            case _:
                pass  # told to others, not to us

    def _written_after_fin(self, read_ns: Nanoseconds, lag_ns: int | None) -> None:
        if lag_ns is not None:
            self._after_fin = (read_ns if self._after_fin is None else self._after_fin[0], read_ns)
        self._timeline.written(read_ns, lag_ns)

    def _missed(self, n_bytes: int, t_ns: Nanoseconds) -> None:
        if self._coding is not None:
            self._coding.missed()
        if self._decoder is not None:
            self._give(lambda decoder: decoder.missed(n_bytes, t_ns))

    def _give(self, ask: Callable[[Decoder], list[Event]]) -> None:
        """Events that do not come from bytes, but from a gap or the end."""
        if self._decoder is None:
            return
        try:
            events = ask(self._decoder)
        except Exception as exc:
            self._decoder_failed(exc)
            return
        for event in events:
            self._timeline_see(event)
            self._show(event)

    def _decoder_failed(self, exc: Exception) -> None:
        self._decoder = self._feed = self._decode_deltas = None
        self._count(f"decoder: {type(exc).__name__}")
        self._undecodable(f"the answer: {type(exc).__name__}")

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end(self, how: _How, clean: bool, t_ns: Nanoseconds) -> None:
        """The answer is over, or will never come."""
        if self.record is not None or self._over_ns is not None:
            return
        self._over_ns = t_ns
        self._open()
        by_framing = self._by_framing(how, clean)
        self._clean = None if how in ("ours", "closed", "broken") else clean
        if self._coding is not None:
            if by_framing == "complete":
                self._coding.close()
            if self._coding.problem is not None:
                self._undecodable(f"the answer: {self._coding.problem}")
        self._give(lambda decoder: decoder.close(by_framing, t_ns))
        if self._status is None and self._forced is None and how in ("upstream_eof", "upstream_reset"):
            self._show(Cut(t_ns, by_framing))  # there is no decoder that could say it
        self._ending = self._judged(by_framing)
        if self._status is None and self._ending == "upstream_truncated":
            self._error = self._error or "The upstream closed the connection without an answer."
        if how in ("framing", "upstream_eof", "upstream_reset") and self._timeline.awaits_client:
            return  # over when the client has taken the rest, or is gone
        self._close(t_ns)

    def _by_framing(self, how: _How, clean: bool) -> Ending:
        """What HTTP alone tells about the end."""
        if how == "ours":
            return self._forced or "shutdown"
        if clean:
            # A client that had sent its FIN makes Ollama end the body early and cleanly: only a terminal record proves a stream.
            left_early = how == "client_eof" and self._timeline.streamed and self._route.generation and not self._finished
            return "client_disconnect" if left_early else "complete"
        if how == "broken":
            self._undecodable("the answer is not readable as HTTP")
        elif how == "closed":
            self._undecodable("its end was not seen")
        return "client_disconnect" if how in ("client_eof", "client_reset") else "upstream_truncated"

    def _judged(self, by_framing: Ending) -> Ending:
        if self._forced is not None:
            return self._forced
        asks_model = self._route.operation is not None
        refused = self._status is not None and self._status >= 400
        if (refused and asks_model) or (self._failed is not None and not refused):
            return "upstream_error"
        if self._finished:
            return "complete"
        return by_framing if self._cut is None or refused else self._cut

    def _close(self, t_ns: Nanoseconds) -> None:
        """Make the Record and hand it over."""
        timeline, opened = self._timeline, self._opened
        assert opened is not None
        timeline.over(t_ns)
        timing = timeline.timing(
            start_unix_ns=self._unix_ns,
            model=opened.model,
            others=self._others,
            bytes_in=self._body_bytes,
            complete=self._ending == "complete",
        )
        if self._said:
            self._hand_on()
        self._apply_verdicts()
        placed, captured = opened.placed, self._captured
        self.record = record = Record(
            id=self.id,
            started_at=self.started_at,
            method=opened.method,
            route=opened.route,
            dialect=opened.dialect,
            operation=opened.operation,
            model=opened.model,
            response_model=self._response_model,
            streamed=timeline.streamed,
            http_status=self._status,
            ending=self._ending,
            session_id=placed.session_id if placed else None,
            session_source=placed.source if placed else None,
            turn=placed.turn if placed else None,
            client=opened.client,
            user_agent=opened.user_agent,
            origin=opened.origin,
            context_window_tokens=self._window(opened),
            finish_reason=timeline.finish_reason,
            tool_calls=self._tool_calls,
            findings=self._findings,
            bytes_in=self._body_bytes,
            bytes_out=self._bytes_out,
            trace_id=_trace_id(opened.traceparent),
            error=self._error,
            undecoded=self._undecoded,
            opened=opened,
            captured_request=self._captured_request,
            captured_answer=captured.text.taken() if captured else None,
            captured_thinking=captured.thinking.taken() if captured else None,
            answer_pieces=captured.text.lengths() if captured else None,
            thinking_pieces=captured.thinking.lengths() if captured else None,
            captured_calls=captured.calls if captured else [],
            **{name: getattr(timing, name) for name in _TIMING},
        )
        self._decoder = self._feed = self._decode_deltas = self._coding = None
        self._watch(())
        self._detectors = []
        self.written = timeline.written
        self._tell(self._sink.closed, record)

    def _apply_verdicts(self) -> None:
        """What a detector made of the calls; one call of each index in turn."""
        for detector in self._detectors:
            open_calls = dict(enumerate(self._call_indices))
            for index, _, _, valid, problems in getattr(detector, "verdicts", ()):
                place = next((i for i, its in open_calls.items() if its == index), None)
                if place is not None:
                    del open_calls[place]
                    self._tool_calls[place].valid = valid
                    self._tool_calls[place].problems = list(problems)

    def _window(self, opened: Opened) -> int | None:
        """Tokens that fit: what the server said in refusing, what the request set (native only), what is loaded."""
        if self._window_tokens is not None or opened.operation is None:
            return self._window_tokens
        if opened.dialect == "ollama" and opened.asked is not None:
            asked_for = (opened.asked.options or {}).get("num_ctx")
            if isinstance(asked_for, int | float) and asked_for > 0:
                return int(asked_for)
        return self._window_of(opened.model) if self._window_of is not None else None

    # --- to the outside -----------------------------------------------------------------------------------------------

    def _progress(self, t_ns: Nanoseconds) -> None:
        self._progress_ns = t_ns + PROGRESS_NS
        timeline = self._timeline
        if timeline.asked_ns is None and self._status is None:
            phase = "uploading"
        elif not self._route.generation:
            return
        elif not timeline.n:
            phase = "waiting"
        else:
            phase = "thinking" if timeline.thinking else "answering"
        first = timeline.first_chunk_ns if timeline.streamed else None
        self._tell(
            self._sink.progress,
            Progress(
                id=self.id,
                t_ns=t_ns,
                phase=phase,
                chunks=timeline.n,
                elapsed_s=max(t_ns - timeline.first_ns, 0) / 1e9,
                ttft_s=None if first is None else (first - timeline.first_ns) / 1e9,
                tokens_per_s=timeline.client_rate(),
            ),
        )

    def _tell(self, say: Callable[[_T], None], what: _T) -> None:
        try:
            say(what)
        except Exception as exc:
            self._count(f"sink: {type(exc).__name__}")

    def _undecodable(self, why: str) -> None:
        if self._undecoded is None:
            self._undecoded = why[:200]
            self._count("undecoded")

    def _count(self, name: str) -> None:
        if self._trouble is not None:
            self._trouble(name)


class _OneByOne:
    """Shows each of several deltas to a detector that has no way to see them at once."""

    def __init__(self, watcher: Detector) -> None:
        self._watcher = watcher
        self.__self__ = watcher  # whose failure it is

    def __call__(self, deltas: Deltas) -> Iterable[Finding]:
        for delta in deltas:
            yield from self._watcher.see(delta)


class _Text:
    """Pieces of text up to a size."""

    __slots__ = ("_left", "_lengths", "_pieces")

    def __init__(self) -> None:
        self._left = CAPTURE_BYTES
        self._pieces: list[str] = []
        self._lengths = bytearray()  # of each chunk's, packed

    def add(self, chunks: list[str]) -> None:
        if self._left > 0:
            piece = "".join(chunks)
            self._pieces.append(piece[: self._left])
            self._left -= len(piece)
            self._lengths += pack_pieces(chunks)

    def taken(self) -> str | None:
        return "".join(self._pieces) if self._pieces else None

    def lengths(self) -> bytes | None:
        return bytes(self._lengths) or None


class _Captured:
    """With `capture`: what was answered, for store and export. Listens as a detector does, and finds nothing."""

    __slots__ = ("calls", "text", "thinking")

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.text = _Text()
        self.thinking = _Text()

    def see(self, event: Event) -> tuple[()]:
        if isinstance(event, ToolCall) and len(self.calls) < _MAX_CALLS:
            self.calls.append(event.arguments[:CAPTURE_BYTES])
        return ()

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        (self.text if kind is TextDelta else self.thinking).add(pieces)


def _now_minus(t_ns: int) -> int:
    """The instant of a stamp that was just read."""
    return time.time_ns() - (time.monotonic_ns() - t_ns)


def _header(headers: Headers, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    return next((value.decode("latin-1").strip() for key, value in headers if key.lower() == name), None)


def _trace_id(traceparent: str | None) -> str | None:
    """W3C Trace Context: version-trace-parent-flags, lower-case hex; all zeros is invalid."""
    found = _TRACEPARENT.match(traceparent or "")
    return None if found is None or not found[1].strip("0") else found[1]
