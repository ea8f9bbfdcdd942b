"""Record → spans: SERVER for the proxied request, CLIENT for the model operation under it, INTERNAL for its phases and tools.

Rules that hold here:

- A span is built once, from the finished record, by the exporting thread; nothing is built when nobody exports.
- The client's `traceparent` is the parent. Ollama receives the request as the client sent it: nothing is injected anywhere.
- Times are the exchange's wall-clock start, taken once, plus monotonic differences.
- Token times go out as summary, histogram and stalls; the whole series only with `QM_EXPORT_ITL=full` (≤ 16 384 chunks).
- Excerpts of a user's text never leave: a finding's evidence is not exported, only its kind, severity and summary.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from qm_proxy.findings import Finding
from qm_proxy.measure.series import unpack
from qm_proxy.record import Record
from qm_proxy.telemetry.content import Redact, as_json, asking, content
from qm_proxy.telemetry.names import EVENTS, SPANS, Profile, attribute

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanContext, Tracer
    from opentelemetry.util.types import AttributeValue

__all__ = ["Itl", "Spans", "parse_traceparent", "start_unix_ns"]

Itl = Literal["summary", "full"]
EVENTS_MAX = 32
SERIES_MAX = 16_384
STALLS_MAX = 16
CONTEXTS_KEPT = 4096
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLING = {
    "max_tokens": ("num_predict", "max_tokens", "max_completion_tokens", "max_output_tokens"),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "seed": ("seed",),
    "frequency_penalty": ("frequency_penalty",),
    "presence_penalty": ("presence_penalty",),
}


def parse_traceparent(text: str | None) -> tuple[int, int, int] | None:
    """(trace id, parent span id, flags) of a W3C traceparent; `None` when absent or malformed, which starts a new trace."""
    match = _TRACEPARENT.fullmatch(text.strip()) if text else None
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    return (trace_id, span_id, int(match[4], 16)) if trace_id and span_id else None


def start_unix_ns(record: Record) -> int:
    """The wall clock of the exchange's first byte, ns since the epoch."""
    if record.series is not None:
        return record.series.start_unix_ns
    return int(datetime.fromisoformat(record.started_at.replace("Z", "+00:00")).timestamp() * 1e9)


class Spans:
    """Builds the spans of one record with the given tracer. Remembers the last contexts, for links between turns."""

    def __init__(
        self,
        tracer: Tracer,
        profile: Profile,
        itl: Itl = "summary",
        *,
        server: tuple[str, int] | None = None,
        redact: Redact | None = None,
    ) -> None:
        """`redact`: what takes secrets out of captured content; without it no content is told."""
        self._tracer = tracer
        self._profile = profile
        self._itl = itl
        self._server = server
        self._asking = asking()
        self._redact = redact
        self._told: dict[str, list[dict[str, object]]] = {}  # the messages of the record that was built last
        self._contexts: OrderedDict[str, SpanContext] = OrderedDict()

    def build(self, record: Record) -> SpanContext:
        """Start and end all spans of `record`; the context of the one that findings belong to (CLIENT, else SERVER)."""
        from opentelemetry import trace
        from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

        opened = record.opened
        wanted = self._redact is not None and (self._asking.on_spans or self._asking.on_events)
        self._told = content(record, self._redact) if wanted and self._redact is not None else {}
        start = start_unix_ns(record)
        end = start + int(record.total_s * 1e9)
        context = None
        parent = parse_traceparent(opened.traceparent if opened else None)
        if parent is not None:
            remote = SpanContext(parent[0], parent[1], is_remote=True, trace_flags=TraceFlags(parent[2]))
            context = trace.set_span_in_context(NonRecordingSpan(remote))
        error = _error_type(record)
        known_route = record.dialect != "other" or record.http_status not in (404, None)
        server = self._tracer.start_span(
            f"{record.method} {record.route}" if known_route else record.method,
            context,
            SpanKind.SERVER,
            self._named(self._http(record, known_route, error)),
            start_time=start,
        )
        if error is not None and (record.http_status is None or record.http_status >= 500 or record.http_status < 400):
            server.set_status(Status(StatusCode.ERROR, record.error))
        about = server
        if record.operation is not None:
            links = self._links(record)
            client = self._tracer.start_span(
                f"{record.operation} {record.model}" if record.model else record.operation,
                trace.set_span_in_context(server),
                SpanKind.CLIENT,
                self._named(self._inference(record, error) | (as_json(self._told) if self._asking.on_spans else {})),
                links=links,
                start_time=start,
            )
            if error is not None:
                client.set_status(Status(StatusCode.ERROR, record.error))
            self._events(client, record, start)
            self._phases(client, record, start)
            client.end(end)
            about = client
        server.end(end)
        found = about.get_span_context()
        self._contexts[record.id] = found
        while len(self._contexts) > CONTEXTS_KEPT:
            self._contexts.popitem(last=False)
        self._turnarounds(record, found, start)
        return found

    def details(self, record: Record) -> dict[str, object] | None:
        """Attributes of the event that tells the operation whole, its messages structured; `None` where none is asked for. Of the
        record that was built last."""
        if not self._asking.events or record.operation is None:
            return None
        found: dict[str, object] = {**self._named(self._inference(record, _error_type(record)))}
        for key, messages in self._told.items() if self._asking.on_events else ():
            if (name := attribute(key, self._profile)) is not None:
                found[name] = messages
        return found

    # --- attributes ---------------------------------------------------------------------------------------------------

    def _named(self, values: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
        """Our keys → this profile's names; unknown (`None`) values and names the profile lacks are left out."""
        named = ((attribute(key, self._profile), value) for key, value in values.items() if value is not None)
        return {name: value for name, value in named if name is not None}

    def _http(self, record: Record, known_route: bool, error: str | None) -> dict[str, AttributeValue | None]:
        return {
            "http_method": record.method,
            "http_route": record.route if known_route else None,
            "url_path": record.route,
            "url_scheme": "http",
            "http_status": record.http_status,
            "user_agent": record.user_agent,
            "synthetic": "test" if record.origin == "probe" else None,
            "origin": record.origin,
            "client": record.client,
            "exchange": record.id,
            "ending": record.ending,
            "error_type": error,
        }

    def _inference(self, record: Record, error: str | None) -> dict[str, AttributeValue | None]:
        finish = record.finish_reason
        if finish is None and record.streamed and record.ending != "complete":
            finish = "error"
        asked = record.opened.asked if record.opened else None
        found: dict[str, AttributeValue | None] = {
            "operation": record.operation,
            "provider": "ollama",
            "request_model": record.model,
            "response_model": record.response_model,
            "stream": True if record.streamed else None,
            "time_to_first_chunk": record.ttft_s if record.streamed else None,
            "finish_reasons": None if finish is None else (finish,),
            "input_tokens": record.input_tokens,
            "output_tokens": record.output_tokens,
            "cached_tokens": record.cached_tokens,
            "server_address": self._server[0] if self._server else None,
            "server_port": self._server[1] if self._server else None,
            "http_status": record.http_status,
            "error_type": error,
            "origin": record.origin,
            "client": record.client,
            "dialect": record.dialect,
            "exchange": record.id,
            "session": record.session_id,
            "session_source": record.session_source,
            "turn": record.turn,
            "ending": record.ending,
            "timing_source": "ollama" if record.rate_source == "server" else None,
            "chunks": record.chunks,
            "reasoning_chunks": record.thinking_chunks or None,
            "ttft_content": record.ttft_content_s,
            "slow_because": record.slow_because,
            "window": record.context_window_tokens,
            "tool_calls": len(record.tool_calls) or None,
            "findings": tuple(sorted({f.kind for f in record.findings})) or None,
        }
        if asked is not None:
            options = asked.options or {}
            for key, names in _SAMPLING.items():
                value = next((options[n] for n in names if isinstance(options.get(n), (int, float))), None)
                found[key] = value if isinstance(value, (int, float)) else None
            found["max_tokens"] = asked.max_output_tokens if asked.max_output_tokens is not None else found["max_tokens"]
            found["previous_response"] = asked.previous_response_id
            found["reasoning_level"] = asked.thinking if asked.thinking not in (None, "true", "false") else None
            if (source := record.session_source) in ("header", "metadata") and record.opened is not None and source:
                placed = record.opened.placed
                found["conversation"] = placed.client_session if placed else None
        return found | self._times(record)

    def _times(self, record: Record) -> dict[str, AttributeValue | None]:
        if record.itl is None or record.series is None:
            return {}
        itl = record.itl
        times = unpack(record.series.arrival)
        left_out = {*record.series.coalesced, *record.series.suspended}
        buckets = [0] * 32  # bucket i counts gaps below 2^i µs
        for index, (a, b) in enumerate(pairwise(times), 1):
            if index not in left_out:
                buckets[min(31, max(0, (b - a) // 1000).bit_length())] += 1
        stalls = [f for f in record.findings if f.kind == "stall" and f.chunk is not None][:STALLS_MAX]
        told = " ".join(f"{f.chunk}/{f.evidence.get('gap_s', '')}/{round(f.t_s or 0, 3)}" for f in stalls)
        found: dict[str, AttributeValue | None] = {
            "itl_count": itl.n,
            "itl_mean": itl.mean_s,
            "itl_p50": itl.p50_s,
            "itl_p90": itl.p90_s,
            "itl_p99": itl.p99_s,
            "itl_max": itl.max_s,
            "itl_hist": tuple(buckets),
            "itl_stalls": told[:1024] or None,
        }
        if self._itl == "full":
            whole = len(times) <= SERIES_MAX
            found["itl_series"] = tuple((b - a) // 1000 for a, b in pairwise(times)) if whole else None
            found["itl_truncated"] = None if whole else True
        return found

    # --- what hangs on the span ---------------------------------------------------------------------------------------

    def _links(self, record: Record) -> list[Link]:
        from opentelemetry.trace import Link

        placed = record.opened.placed if record.opened else None
        before = self._contexts.get(placed.previous_exchange_id or "") if placed else None
        return [] if before is None else [Link(before)]

    def _events(self, span: Span, record: Record, start: int) -> None:
        """Tool calls, then findings: at most 32, because a span keeps no more and drops the rest silently."""
        events: list[tuple[int, str, Mapping[str, AttributeValue | None]]] = [
            (
                start + int(call.t_s * 1e9),
                EVENTS["tool_call"],
                {
                    "tool_name": call.name,
                    "tool_call_id": call.id,
                    "tool_call_time": call.t_s,
                    "tool_call_bytes": call.argument_bytes,
                    "tool_call_valid": call.valid,
                    "tool_call_problems": tuple(call.problems) or None,
                },
            )
            for call in record.tool_calls
        ]
        events += [(start + int((f.t_s or 0) * 1e9), EVENTS["finding"], finding_values(f)) for f in record.findings]
        for at, name, values in events[:EVENTS_MAX]:
            span.add_event(name, self._named(values), timestamp=at)

    def _phases(self, client: Span, record: Record, start: int) -> None:
        """Queue, load, prefill and decode, one after the other as the server tells them."""
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind

        at = start
        context = trace.set_span_in_context(client)
        for phase in ("queue", "load", "prefill", "decode"):
            spent = getattr(record, f"{phase}_s")
            if not spent:
                continue
            if phase == "decode" and record.ttft_s is not None:  # the server counts the first token too, which came before TTFT
                seen = start + int(record.ttft_s * 1e9)
                at = max(at, min(seen, start + int(record.total_s * 1e9) - int(spent * 1e9)))
            derived = phase == "queue" or record.rate_source != "server"
            span = self._tracer.start_span(
                SPANS[phase], context, SpanKind.INTERNAL, self._named({"derived": derived or None}), start_time=at
            )
            at += int(spent * 1e9)
            span.end(at)

    def _turnarounds(self, record: Record, found: SpanContext, start: int) -> None:
        """What the tools took between a call of an earlier answer and this request: children of the asking operation."""
        from opentelemetry import trace
        from opentelemetry.trace import Link, NonRecordingSpan, SpanKind

        opened = record.opened
        if opened is None or opened.placed is None:
            return
        for result in opened.placed.results[:EVENTS_MAX]:
            asking = self._contexts.get(result.exchange_id)
            links = [Link(found)] if asking is None else [Link(asking), Link(found)]
            context = trace.set_span_in_context(NonRecordingSpan(asking or found))
            back = start + (result.back_ns - opened.t_ns)
            values = {"tool_name": result.name, "tool_call_id": result.call_id or None, "exchange": result.exchange_id}
            span = self._tracer.start_span(
                SPANS["tool_turnaround"],
                context,
                SpanKind.INTERNAL,
                self._named(values),
                links=links,
                start_time=back - (result.back_ns - result.asked_ns),
            )
            span.end(back)


def finding_values(finding: Finding) -> dict[str, AttributeValue | None]:
    """A finding's exported attributes by our keys: no excerpt, no evidence of a user's text."""
    return {
        "finding": finding.kind,
        "finding_id": finding.id or None,
        "severity": finding.severity,
        "summary": finding.summary,
        "tokens_wasted": finding.tokens_wasted,
        "exchange": finding.exchange_id,
        "session": finding.session_id,
    }


def _error_type(record: Record) -> str | None:
    """As the conventions want it: a status, or a word of a documented list; a client that left is no error."""
    if record.ending == "upstream_unreachable":
        return "upstream_connect"
    if record.http_status is not None and record.http_status >= 400:
        return str(record.http_status)
    return {"upstream_truncated": "upstream_truncated", "upstream_error": "ollama_error"}.get(record.ending)
