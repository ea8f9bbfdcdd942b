"""Ollama's own dialect: chat, generate, embeddings, and the progress of pull, push and create. NDJSON, or one such record.

Rules that hold here:

- A record may be everything at once: thinking, text, tool calls, and the end (`done:true`); events come in that order.
- 0 is how this server's `omitempty` spells "absent": counts and durations of 0 are unknown.
- `done:false` in the only or last record is no end (the server's repeat-abort, 0.33 and before).
- Source: Ollama 0.33 `api/types.go`, `server/routes.go`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from operator import attrgetter
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
    ToolCall,
    Usage,
)
from qm_proxy.wire.bodies import Answer, WholeAnswer, count
from qm_proxy.wire.failures import failure
from qm_proxy.wire.framing import MAX_RECORD, Lines, Whole
from qm_proxy.wire.replies import Standing
from qm_proxy.wire.tolerant import REFUSED, tolerant

__all__ = ["NativeAnswer", "NativeEmbeddings", "NativeWhole", "Stamp"]


class _Function(msgspec.Struct, gc=False):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct, gc=False):
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Record(msgspec.Struct, gc=False):
    model: str | None = None
    created_at: str | None = None
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None
    done: bool | None = None
    done_reason: str | None = None
    error: Any = None
    status: Any = None  # progress
    remote_host: str | None = None
    total_duration: int | float | None = None
    load_duration: int | float | None = None
    prompt_eval_count: int | float | None = None
    prompt_eval_cached_count: int | float | None = None
    prompt_eval_duration: int | float | None = None
    eval_count: int | float | None = None
    eval_duration: int | float | None = None


class _SaysText(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: str
    role: str = ""


class _SaysThinking(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    thinking: str
    content: Literal[""] = ""
    role: str = ""


class _ChatText(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A record of chat that says text and nothing else: half the time of `_Record`. The three below likewise."""

    created_at: str
    message: _SaysText
    done: bool
    model: str = ""


class _ChatThinking(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    created_at: str
    message: _SaysThinking
    done: bool
    model: str = ""


class _GenerateText(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    created_at: str
    response: str
    done: bool
    model: str = ""


class _GenerateThinking(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    created_at: str
    thinking: str
    done: bool
    response: Literal[""] = ""
    model: str = ""


_decode = msgspec.json.Decoder(_Record).decode
_decode_plain: dict[tuple[bool, type], tuple[Callable[[bytes], Any], Callable[[Any], str]]] = {
    (False, TextDelta): (msgspec.json.Decoder(_ChatText).decode, attrgetter("message.content")),
    (False, ThinkingDelta): (msgspec.json.Decoder(_ChatThinking).decode, attrgetter("message.thinking")),
    (True, TextDelta): (msgspec.json.Decoder(_GenerateText).decode, attrgetter("response")),
    (True, ThinkingDelta): (msgspec.json.Decoder(_GenerateThinking).decode, attrgetter("thinking")),
}
_decode_text = msgspec.json.Decoder(str).decode


_PATIENCE = 8


class Stamp:
    """`created_at` → ns since the epoch. Remembers the last second it worked out: a stream has some 60 tokens in each."""

    __slots__ = ("_base", "_second")

    _UNIT: tuple[int, ...] = (0,) * 22 + tuple(int(10**n) for n in range(8, -1, -1))
    """Of a fraction's last digit, by the length of the whole stamp: 22 (one digit) to 30 (nine)."""

    def __init__(self) -> None:
        self._second = ""
        self._base = 0

    def ns(self, text: str | None) -> int | None:
        """RFC 3339 with 0 to 9 fractional digits (more are cut), `Z` or an offset. None for what is none."""
        if not text:
            return None
        try:
            if text[:20] == self._second:
                return self._base + int(text[20:-1]) * self._UNIT[len(text)]
        except (ValueError, IndexError):
            pass  # an offset, no fraction, more than nine digits
        try:
            return self._slow(text)
        except (ValueError, OverflowError):
            return None

    def _slow(self, text: str) -> int:
        second, dot, rest = text.partition(".")
        digits = rest.rstrip("Zz") if rest[-1:] in "Zz" else rest.partition("+")[0].partition("-")[0]
        if not dot:
            return round(datetime.fromisoformat(text).timestamp()) * 10**9
        zone = rest[len(digits) :]
        base = round(datetime.fromisoformat(second + zone).timestamp()) * 10**9
        if zone == "Z":
            self._second, self._base = second + ".", base
        return base + int(digits[:9].ljust(9, "0"))


class NativeAnswer(Answer):
    """One answer of `/api/chat`, `/api/generate`, `/api/pull`, `/api/push` or `/api/create`, streamed or not."""

    def __init__(self, *, generate: bool = False) -> None:
        super().__init__()
        self._lines = Lines()
        self._stamp_ns = Stamp().ns
        self._calls = 0
        self._created_at: str | None = None
        self._in_stream = False  # a record was read, and no gap came since: the common ones can go the short way
        self._refused = 0  # times that records said more than a delta
        self._standing.generate = generate

    def feed(self, data: bytes, t_ns: Nanoseconds) -> list[Event]:
        lines = self._lines
        line, end, rest = data.partition(b"\n")
        if end and not rest and not lines.size and len(line) <= MAX_RECORD:  # one read, one whole record
            try:
                record = _decode(line)
            except REFUSED:
                return self._line(line, t_ns)
            if self._in_stream and record.done is False and record.error is None:
                # What a token nearly always is, in one frame: two thirds of the general way's time.
                message = record.message
                if message is not None:
                    text, thinking, calls = message.content, message.thinking, message.tool_calls
                else:
                    text, thinking, calls = record.response, record.thinking, record.tool_calls
                if calls is None:
                    self._created_at = created_at = record.created_at
                    if text:
                        if not thinking:
                            return [TextDelta(t_ns, text, self._stamp_ns(created_at))]
                    elif thinking:
                        return [ThinkingDelta(t_ns, thinking, self._stamp_ns(created_at))]
            return self._record(record, t_ns)
        out: list[Event] = []
        for one in lines.feed(data):
            out += self._line(one, t_ns)
        return out

    def deltas(self, kind: type[TextDelta | ThinkingDelta], bodies: list[bytes], t_ns: list[Nanoseconds]) -> Deltas | None:
        if not self._in_stream or self._lines.size or self._refused > _PATIENCE:
            return None
        decode, text_of = _decode_plain[self._standing.generate, kind]
        texts: list[str] = []
        stamps: list[str] = []
        try:
            for body in bodies:
                record = decode(body)
                text = text_of(record)
                if record.done or not text or body[-1] != 10:
                    return None
                texts.append(text)
                stamps.append(record.created_at)
        except REFUSED:
            self._refused += 1  # the other kind, a call, the end, or an imitation with fields of its own
            return None
        self._created_at = stamps[-1]
        return Deltas(kind, t_ns, texts, stamps, self._stamp_ns)

    def standing(self) -> Standing:
        self._standing.created_at = self._created_at
        return self._standing

    def missed(self, n_bytes: int, t_ns: Nanoseconds) -> list[Event]:
        self._lines.missed()
        self._in_stream = False
        return super().missed(n_bytes, t_ns)

    def close(self, ending: Ending, t_ns: Nanoseconds) -> list[Event]:
        out: list[Event] = []
        for line in self._lines.close():
            if ending != "complete":
                self._torn = True  # a last line cut short is no malformation
            out += self._line(line, t_ns)
        return self._end(out, ending, t_ns)

    def _line(self, line: bytes | None, t_ns: Nanoseconds) -> list[Event]:
        record: _Record | None = None
        if line is not None:
            try:
                record = _decode(line)
            except REFUSED:
                if not line.strip():
                    return []
                record = tolerant(line, _Record)
        if record is None:
            out: list[Event] = []
            self._malformed(out, t_ns, line)
            return out
        return self._record(record, t_ns)

    def _record(self, record: _Record, t_ns: Nanoseconds) -> list[Event]:
        out: list[Event] = []
        self._torn = False
        if record.error is not None and record.error != "":
            self._fail(out, failure(t_ns, 200, record.error))
            return out
        message = record.message
        text = message.content if message is not None and message.content else record.response
        thinking = message.thinking if message is not None and message.thinking else record.thinking
        calls = message.tool_calls if message is not None and message.tool_calls else record.tool_calls
        if isinstance(record.status, str) and record.done is None and not text and message is None:
            self._progress(record.status, t_ns, out)
            return out
        self._begin(out, t_ns, record.model, None, record.remote_host)
        self._in_stream = True
        self._created_at = record.created_at
        server_ns = self._stamp_ns(record.created_at)
        if thinking:
            out.append(ThinkingDelta(t_ns, thinking, server_ns))
        if text:
            out.append(TextDelta(t_ns, text, server_ns))
        for call in calls or ():
            function = call.function or _Function()
            arguments = bytes(function.arguments).decode("utf-8", "replace")
            if arguments.startswith('"'):
                arguments = _decode_text(function.arguments)  # other servers of this dialect send a text, as OpenAI does
            out.append(ToolCall(t_ns, self._calls, call.id or "", function.name, arguments, True, server_ns))
            self._calls += 1
        if record.done:
            self._done(record, t_ns, out)
        elif not (text or thinking or calls):
            out.append(EmptyRecord(t_ns, server_ns))
        return out

    def _progress(self, status: str, t_ns: Nanoseconds, out: list[Event]) -> None:
        if status == "success":
            self._finish(out, t_ns, status)
        else:
            out.append(EmptyRecord(t_ns))

    def _done(self, record: _Record, t_ns: Nanoseconds, out: list[Event]) -> None:
        usage = Usage(
            t_ns,
            count(record.prompt_eval_count),
            count(record.eval_count),
            count(record.prompt_eval_cached_count),
            count(record.total_duration),
            count(record.load_duration),
            count(record.prompt_eval_duration),
            count(record.eval_duration),
        )
        if usage != Usage(t_ns):
            out.append(usage)
        self._finish(out, t_ns, record.done_reason)


class NativeWhole(NativeAnswer):
    """The same where one JSON document was asked for: read at its end, so its layout does not matter."""

    def __init__(self, *, generate: bool = False) -> None:
        super().__init__(generate=generate)
        self._lines = Whole()
        self._at: Nanoseconds | None = None  # the read that brought the last byte

    def feed(self, data: bytes, t_ns: Nanoseconds) -> list[Event]:
        self._lines.feed(data)
        self._at = t_ns
        return []

    def deltas(self, kind: type[TextDelta | ThinkingDelta], bodies: list[bytes], t_ns: list[Nanoseconds]) -> None:
        return None

    def close(self, ending: Ending, t_ns: Nanoseconds) -> list[Event]:
        return super().close(ending, t_ns if self._at is None else self._at)


class NativeEmbeddings(WholeAnswer):
    """`/api/embed`, `/api/embeddings` and `/v1/embeddings`: the vectors are passed over."""

    def _body(self, body: bytes, t_ns: Nanoseconds, out: list[Event]) -> bool:
        try:
            found = msgspec.json.decode(body, type=_Embeddings)
        except REFUSED:
            return False
        if found.error is not None and found.error != "":
            self._fail(out, failure(t_ns, 200, found.error))
            return True
        self._begin(out, t_ns, found.model, None)
        prompt = found.prompt_eval_count if found.usage is None else found.usage.prompt_tokens
        usage = Usage(t_ns, count(prompt), total_ns=count(found.total_duration), load_ns=count(found.load_duration))
        if usage != Usage(t_ns):
            out.append(usage)
        self._finish(out, t_ns, None)
        return True


class _EmbeddingsUsage(msgspec.Struct, gc=False):
    prompt_tokens: int | float | None = None


class _Embeddings(msgspec.Struct, gc=False):
    model: Any = None
    error: Any = None
    prompt_eval_count: int | float | None = None
    total_duration: int | float | None = None
    load_duration: int | float | None = None
    usage: _EmbeddingsUsage | None = None
