"""OpenAI's Responses, as Ollama and others send them.

Rules that hold here:

- A record's kind is its `type` (Ollama sorts its keys, so `type` comes last; the event's name says the same).
- `output_item.done` completes a call; arguments in it are the server's own repetition of the pieces. What only the final
  `response` shows is taken from there: some servers send nothing else.
- The terminal record is `response.completed` or `response.incomplete`. Ollama sends `completed` also at the length limit, and
  swallows an error inside a stream: it just ends (0.33 `openai/responses.go`).
- `cached_tokens` of 0 is unknown: Ollama writes it whatever happened.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qm_proxy.events import (
    Deltas,
    EmptyRecord,
    Event,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
    Usage,
)
from qm_proxy.wire.bodies import ServerSentAnswer, WholeAnswer, count
from qm_proxy.wire.calls import OpenCalls
from qm_proxy.wire.failures import failure
from qm_proxy.wire.replies import OpenItem
from qm_proxy.wire.tolerant import REFUSED, compact, tolerant

__all__ = ["ResponsesAnswer", "ResponsesWhole"]

_TEXT = ("response.output_text.delta", "response.refusal.delta")
_THINKING = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta", "response.reasoning.delta")
_ARGUMENTS = (
    "response.function_call_arguments.delta",
    "response.custom_tool_call_input.delta",
    "response.mcp_call_arguments.delta",
)
_STRUCTURE = (
    "response.created",
    "response.in_progress",
    "response.queued",
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_summary_part.added",
)


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str = ""
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Any = None
    input: Any = None
    action: Any = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | float | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int | float | None = None
    output_tokens: int | float | None = None
    input_tokens_details: _Details | None = None


class _Reason(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    id: Any = None
    model: Any = None
    created_at: int | float | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: _Reason | None = None
    output: msgspec.Raw = msgspec.Raw(b"[]")
    usage: _Usage | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: Any = None
    item_id: str | None = None
    output_index: int | None = None
    sequence_number: int | None = None
    item: _Item | None = None
    response: _Response | None = None
    error: Any = None
    message: Any = None
    code: Any = None


class _PlainEvent(msgspec.Struct, gc=False):
    """A delta of text or thinking."""

    type: Literal[
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning.delta",
    ]
    delta: str
    sequence_number: int


_decode = msgspec.json.Decoder(_Event).decode
_decode_plain = msgspec.json.Decoder(_PlainEvent).decode
_decode_items = msgspec.json.Decoder(list[_Item]).decode


def _is_call(item: _Item) -> bool:
    return item.type.endswith("_call") or item.type == "function_call"


def _call_id(item: _Item) -> str:
    return item.call_id or item.id or ""


def _call_name(item: _Item) -> str:
    return item.name or item.type.removesuffix("_call")


def _arguments(item: _Item) -> str:
    """JSON text of a function's arguments, or the plain text of a custom tool's input; "" where nothing is given."""
    for value in (item.arguments, item.input, item.action):
        if isinstance(value, str):
            return value
        if value is not None:
            return compact(value)
    return ""


def _usage(t_ns: Nanoseconds, wire: _Usage | None) -> Usage | None:
    if wire is None:
        return None
    details = wire.input_tokens_details
    usage = Usage(
        t_ns, count(wire.input_tokens), count(wire.output_tokens), None if details is None else count(details.cached_tokens)
    )
    return None if usage == Usage(t_ns) else usage


def _reason(response: _Response) -> str | None:
    details = response.incomplete_details
    return (details.reason if details is not None else None) or response.status


def _output(response: _Response, calls: OpenCalls, t_ns: Nanoseconds, out: list[Event]) -> None:
    """The payload of a whole response, in the order of its items."""
    try:
        items = _decode_items(response.output)
    except REFUSED:
        items = tolerant(bytes(response.output), list[_Item]) or []
    for item in items:
        if _is_call(item):
            calls.whole(out, t_ns, _call_id(item), _call_name(item), _arguments(item) or "{}")
        elif item.type == "reasoning":
            for part in item.content or item.summary or ():
                if part.text:
                    out.append(ThinkingDelta(t_ns, part.text))
        else:
            for part in item.content or ():
                if part.text or part.refusal:
                    out.append(TextDelta(t_ns, part.text or part.refusal or ""))


class ResponsesAnswer(ServerSentAnswer):
    """A streamed answer of `/v1/responses`."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = OpenCalls()
        self._told = False  # payload came piece by piece

    def deltas(self, kind: type[TextDelta | ThinkingDelta], bodies: list[bytes], t_ns: list[Nanoseconds]) -> Deltas | None:
        if not self._told or self._torn:
            return None
        record_of = self._events.record
        texts: list[str] = []
        number = 0
        try:
            for body in bodies:
                record = record_of(body)
                if record is None:
                    return None
                event = _decode_plain(record)
                if not event.delta or (event.type in _TEXT) is not (kind is TextDelta):
                    return None
                texts.append(event.delta)
                number = event.sequence_number
        except REFUSED:
            return None  # an item begins or ends
        self._standing.sequence = number + 1
        return Deltas(kind, t_ns, texts)

    def _record(self, name: bytes, record: bytes, t_ns: Nanoseconds, out: list[Event]) -> None:
        try:
            event = _decode(record)
        except REFUSED:
            found = tolerant(record, _Event)
            if found is None:
                if record.strip() != b"[DONE]":  # some gateways add it
                    self._malformed(out, t_ns, record)
                return
            event = found
        self._torn = False
        if event.sequence_number is not None:
            self._standing.sequence = event.sequence_number + 1
        kind = event.type or name.decode("latin-1")
        if kind in _TEXT or kind in _THINKING:
            delta = event.delta
            if isinstance(delta, str) and delta:
                self._told = True
                out.append(TextDelta(t_ns, delta) if kind in _TEXT else ThinkingDelta(t_ns, delta))
            else:
                out.append(EmptyRecord(t_ns))
        elif kind in _ARGUMENTS:
            self._told = True
            if isinstance(event.delta, str) and event.delta:
                self._calls.add(out, t_ns, event.item_id or event.output_index, event.delta)
            else:
                out.append(EmptyRecord(t_ns))
        elif kind in _STRUCTURE:
            self._structure(event, t_ns, out)
        elif kind == "response.output_item.done":
            self._item_done(event, t_ns, out)
        elif kind in ("response.completed", "response.incomplete", "response.cancelled"):
            self._completed(event.response or _Response(), t_ns, out)
        elif kind == "response.failed":
            response = event.response or _Response()
            usage = _usage(t_ns, response.usage)
            if usage is not None:
                out.append(usage)
            self._fail(out, failure(t_ns, 200, response.error if response.error is not None else event.error))
        elif kind == "error" or event.error is not None:
            error = event.error if event.error is not None else {"message": event.message, "code": event.code}
            self._fail(out, failure(t_ns, 200, error))
        elif not kind.endswith(".done"):  # progress of server tools, and what is not known yet
            out.append(EmptyRecord(t_ns))

    def _structure(self, event: _Event, t_ns: Nanoseconds, out: list[Event]) -> None:
        response, item = event.response, event.item
        if response is not None:
            self._begin(out, t_ns, response.model, response.id)
            self._standing.created = count(response.created_at)
        if item is not None:
            self._begin(out, t_ns, None, None)
            index = event.output_index or 0
            kind = "tool" if _is_call(item) else "thinking" if item.type == "reasoning" else "text"
            self._standing.open = [OpenItem(kind, index, item.id or "")]
            if kind == "tool":
                self._calls.begin(item.id or event.output_index, _call_id(item), _call_name(item))

    def _item_done(self, event: _Event, t_ns: Nanoseconds, out: list[Event]) -> None:
        self._standing.open = []
        item = event.item
        if item is None or not _is_call(item):
            return
        self._told = True
        key = item.id or event.output_index
        arguments = _arguments(item)
        if key in self._calls:
            self._calls.name(key, _call_id(item), _call_name(item))
            self._calls.end(out, t_ns, key, arguments or None)
        else:
            self._calls.whole(out, t_ns, _call_id(item), _call_name(item), arguments or "{}")

    def _completed(self, response: _Response, t_ns: Nanoseconds, out: list[Event]) -> None:
        self._begin(out, t_ns, response.model, response.id)
        self._calls.end_all(out, t_ns)
        if not self._told:
            _output(response, self._calls, t_ns, out)
        usage = _usage(t_ns, response.usage)
        if usage is not None:
            out.append(usage)
        self._finish(out, t_ns, _reason(response))


class ResponsesWhole(WholeAnswer):
    """The same, not streamed."""

    def _body(self, body: bytes, t_ns: Nanoseconds, out: list[Event]) -> bool:
        try:
            response = msgspec.json.decode(body, type=_Response)
        except REFUSED:
            found = tolerant(body, _Response)
            if found is None:
                return False
            response = found
        if response.error is not None or response.status == "failed":
            self._fail(out, failure(t_ns, 200, response.error))
            return True
        self._begin(out, t_ns, response.model, response.id)
        _output(response, OpenCalls(), t_ns, out)
        usage = _usage(t_ns, response.usage)
        if usage is not None:
            out.append(usage)
        if response.status is not None:
            self._finish(out, t_ns, _reason(response))
        return True
