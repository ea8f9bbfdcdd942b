"""Anthropic's messages, as Ollama and others send them.

Rules that hold here:

- `message_start` tells the input tokens before anything was counted: Ollama's is bytes / 4 of the uncut request, so it is
  marked as estimated, unless the server accounts for its cache there (then it has counted).
- Input tokens include what came from the cache (the wire has them apart).
- Arguments come as deltas, also when Ollama sends them in one; a call is complete with its block.
- The terminal record is `message_stop`. Ollama swallows an error inside a stream: it just ends. (0.33 `middleware/anthropic.go`.)
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qm_proxy.events import (
    Deltas,
    EmptyRecord,
    Ending,
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
from qm_proxy.wire.tolerant import REFUSED, tolerant

__all__ = ["AnthropicAnswer", "AnthropicWhole"]

_TOOLS = ("tool_use", "server_tool_use", "mcp_tool_use")


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int | float | None = None
    output_tokens: int | float | None = None
    cache_read_input_tokens: int | float | None = None
    cache_creation_input_tokens: int | float | None = None


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    id: str | None = None
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"")


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    id: Any = None
    model: Any = None
    usage: _Usage | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int | None = None
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | str | None = None
    usage: _Usage | None = None
    error: Any = None


class _WholeMessage(_Message, gc=False):
    type: str = ""
    error: Any = None


class _PlainDelta(msgspec.Struct, gc=False):
    text: str = ""
    thinking: str = ""
    partial_json: None = None


class _PlainEvent(msgspec.Struct, gc=False):
    """A block's delta that says text or thinking and nothing else."""

    type: Literal["content_block_delta"]
    delta: _PlainDelta


_decode = msgspec.json.Decoder(_Event).decode
_decode_plain = msgspec.json.Decoder(_PlainEvent).decode


def _usage(t_ns: Nanoseconds, wire: _Usage, *, start: bool = False) -> Usage:
    read, made = wire.cache_read_input_tokens, wire.cache_creation_input_tokens
    parts = [count(wire.input_tokens), count(read), count(made)]
    output = 0 if wire.output_tokens == 0 and not start else count(wire.output_tokens)
    return Usage(
        t_ns,
        input_tokens=sum(part or 0 for part in parts) or None,
        output_tokens=None if start else output,
        cached_tokens=None if read is None else int(read),
        estimated=start and read is None and made is None,
    )


class AnthropicAnswer(ServerSentAnswer):
    """A streamed answer of `/v1/messages`."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = OpenCalls()
        self._inputs: dict[int, str] = {}  # calls whose block began with their whole input
        self._reason: str | None = None

    def deltas(self, kind: type[TextDelta | ThinkingDelta], bodies: list[bytes], t_ns: list[Nanoseconds]) -> Deltas | None:
        if not self._begun or self._torn:
            return None
        record_of = self._events.record
        texts: list[str] = []
        try:
            for body in bodies:
                record = record_of(body)
                if record is None:
                    return None
                delta = _decode_plain(record).delta
                text = delta.text or delta.thinking
                if not text or (delta.text != "") is not (kind is TextDelta):
                    return None
                texts.append(text)
        except REFUSED:
            return None  # a block begins or ends, or a call is told
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
        kind = event.type or name.decode("latin-1")
        if kind == "content_block_delta":
            delta = event.delta
            if delta is not None and delta.text and self._begun:
                out.append(TextDelta(t_ns, delta.text))
            else:
                self._delta(event, t_ns, out)
        elif kind == "content_block_start":
            self._block(event, t_ns, out)
        elif kind == "content_block_stop":
            self._stop(event.index or 0, t_ns, out)
        elif kind == "message_start":
            self._start(event, t_ns, out)
        elif kind == "message_delta":
            if event.delta is not None and event.delta.stop_reason:
                self._reason = event.delta.stop_reason
            self._account(event.usage, t_ns, out)
        elif kind == "message_stop":
            self._conclude(out, t_ns)
        elif kind == "error" or event.error is not None:
            self._fail(out, failure(t_ns, 200, event.error if event.error is not None else event.message))
        else:  # ping, and what is not known yet
            out.append(EmptyRecord(t_ns))

    def _start(self, event: _Event, t_ns: Nanoseconds, out: list[Event]) -> None:
        message = event.message if isinstance(event.message, _Message) else _Message()
        self._begin(out, t_ns, message.model, message.id)
        if message.usage is not None:
            usage = _usage(t_ns, message.usage, start=True)
            self._standing.output_tokens = int(message.usage.output_tokens or 0)
            if usage != Usage(t_ns, estimated=usage.estimated):
                out.append(usage)

    def _account(self, wire: _Usage | None, t_ns: Nanoseconds, out: list[Event]) -> None:
        if wire is not None:
            usage = _usage(t_ns, wire)
            if usage != Usage(t_ns):
                out.append(usage)

    def _block(self, event: _Event, t_ns: Nanoseconds, out: list[Event]) -> None:
        self._begin(out, t_ns, None, None)
        block, index = event.content_block or _Block(), event.index or 0
        if block.type in _TOOLS:
            self._standing.open = [OpenItem("tool", index)]
            self._calls.begin(index, block.id or "", block.name or "")
            given = bytes(block.input).strip()
            if given not in (b"", b"{}", b"null"):
                self._inputs[index] = given.decode("utf-8", "replace")
        elif block.type == "thinking":
            self._standing.open = [OpenItem("thinking", index)]
            if block.thinking:
                out.append(ThinkingDelta(t_ns, block.thinking))
        else:
            self._standing.open = [OpenItem("text", index)]
            if block.text:
                out.append(TextDelta(t_ns, block.text))

    def _delta(self, event: _Event, t_ns: Nanoseconds, out: list[Event]) -> None:
        self._begin(out, t_ns, None, None)
        delta = event.delta
        if delta is None:
            out.append(EmptyRecord(t_ns))
        elif delta.text:
            out.append(TextDelta(t_ns, delta.text))
        elif delta.thinking:
            out.append(ThinkingDelta(t_ns, delta.thinking))
        elif delta.partial_json:
            self._inputs.pop(event.index or 0, None)
            self._calls.add(out, t_ns, event.index or 0, delta.partial_json)
        else:  # signatures, citations, empty ones
            out.append(EmptyRecord(t_ns))

    def _stop(self, index: int, t_ns: Nanoseconds, out: list[Event]) -> None:
        self._standing.open = []
        self._calls.end(out, t_ns, index, self._inputs.pop(index, None))

    def _conclude(self, out: list[Event], t_ns: Nanoseconds) -> None:
        self._calls.end_all(out, t_ns)
        self._finish(out, t_ns, self._reason)

    def _last(self, ending: Ending, t_ns: Nanoseconds, out: list[Event]) -> None:
        if ending == "complete" and self._reason is not None and not self._failed:
            self._conclude(out, t_ns)


class AnthropicWhole(WholeAnswer):
    """The same, not streamed."""

    def _body(self, body: bytes, t_ns: Nanoseconds, out: list[Event]) -> bool:
        try:
            message = msgspec.json.decode(body, type=_WholeMessage)
        except REFUSED:
            found = tolerant(body, _WholeMessage)
            if found is None:
                return False
            message = found
        if message.type == "error" or message.error is not None:
            self._fail(out, failure(t_ns, 200, message.error))
            return True
        self._begin(out, t_ns, message.model, message.id)
        calls = OpenCalls()
        for block in message.content or ():
            if block.type in _TOOLS:
                calls.whole(out, t_ns, block.id or "", block.name or "", bytes(block.input).decode("utf-8", "replace") or "{}")
            elif block.thinking:
                out.append(ThinkingDelta(t_ns, block.thinking))
            elif block.text:
                out.append(TextDelta(t_ns, block.text))
        if message.usage is not None:
            usage = _usage(t_ns, message.usage)
            if usage != Usage(t_ns):
                out.append(usage)
        if message.stop_reason:
            self._finish(out, t_ns, message.stop_reason)
        return True
