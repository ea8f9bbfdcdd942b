"""OpenAI's chat completions and completions, as Ollama and its neighbours (vLLM, llama.cpp, LM Studio, gateways) send them.

Rules that hold here:

- Choice 0 is the answer; records of further choices (`n` > 1) are counted as empty.
- Ollama sends a call whole, in one record; others in pieces. Arguments that are a complete JSON object are a whole call.
- The terminal record is `[DONE]`; a clean end behind a `finish_reason` is one too (servers that spare it).
- Ollama swallows an error inside a stream: all that shows is a chunk whose `model` is empty. A stream that ends without
  `[DONE]` and without such a chunk is its repeat-abort, or a crash elsewhere. (Observed on 0.33; `middleware/openai.go`.)
- A usage of zeros (completions with `include_usage`, repeat-abort) is no usage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from qm_proxy.events import (
    Deltas,
    EmptyRecord,
    Ending,
    Event,
    Failed,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    Usage,
)
from qm_proxy.wire.bodies import ServerSentAnswer, WholeAnswer, count
from qm_proxy.wire.calls import OpenCalls
from qm_proxy.wire.failures import failure
from qm_proxy.wire.tolerant import REFUSED, compact, tolerant

__all__ = ["OpenAIAnswer", "OpenAIWhole"]


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None  # a string; some servers send the object
    input: str | None = None  # custom tools


class _Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | float | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: Any = None
    model: Any = None
    created: int | float | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None  # vLLM's error: {"object": "error", "message": …}


class _SaysText(msgspec.Struct, gc=False):
    content: str
    reasoning: Literal[""] | None = None
    reasoning_content: Literal[""] | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _SaysThinking(msgspec.Struct, gc=False):
    reasoning: str = ""
    reasoning_content: str = ""
    content: Literal[""] | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _TextChoice(msgspec.Struct, gc=False):
    delta: _SaysText
    index: Literal[0] = 0
    finish_reason: None = None
    message: None = None
    text: None = None


class _ThinkingChoice(msgspec.Struct, gc=False):
    delta: _SaysThinking
    index: Literal[0] = 0
    finish_reason: None = None
    message: None = None
    text: None = None


class _TextChunk(msgspec.Struct, gc=False):
    """A chunk of chat completions that says text of choice 0 and nothing else. `_ThinkingChunk` likewise."""

    model: str
    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None


class _ThinkingChunk(msgspec.Struct, gc=False):
    model: str
    choices: tuple[_ThinkingChoice]
    usage: None = None
    error: None = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_text: Callable[[bytes], _TextChunk | _ThinkingChunk] = msgspec.json.Decoder(_TextChunk).decode
_decode_thinking: Callable[[bytes], _TextChunk | _ThinkingChunk] = msgspec.json.Decoder(_ThinkingChunk).decode
_PATIENCE = 8


class _Chunks:
    """What one chunk says, streamed (`delta`) or whole (`message`): shared by both answers below."""

    def __init__(self) -> None:
        self.calls = OpenCalls()
        self.reason: str | None = None
        self.usage: Usage | None = None
        self._told: dict[int, int] = {}  # key of a call that came whole → its number

    def payload(self, chunk: _Chunk, t_ns: Nanoseconds, out: list[Event]) -> None:
        usage = chunk.usage
        if usage is not None:
            prompt, completion = count(usage.prompt_tokens), count(usage.completion_tokens)
            if prompt is not None or completion is not None:
                if completion is None and usage.completion_tokens == 0:
                    completion = 0
                details = usage.prompt_tokens_details
                cached = None if details is None or details.cached_tokens is None else int(details.cached_tokens)
                self.usage = Usage(t_ns, prompt, completion, cached)
        if not chunk.choices:
            return
        before = len(out)
        ended = False
        for choice in chunk.choices:
            if choice.index:
                continue
            delta = choice.delta if choice.delta is not None else choice.message
            if choice.text:
                out.append(TextDelta(t_ns, choice.text))
            if delta is not None:
                self._delta(delta, t_ns, out)
            if choice.finish_reason:
                self.reason = choice.finish_reason
                self.calls.end_all(out, t_ns)
                ended = True
        if len(out) == before and not ended:
            out.append(EmptyRecord(t_ns))

    def _delta(self, delta: _Delta, t_ns: Nanoseconds, out: list[Event]) -> None:
        thinking = delta.reasoning or delta.reasoning_content
        if thinking:
            out.append(ThinkingDelta(t_ns, thinking))
        content = delta.content
        if isinstance(content, list):
            _parts(content, t_ns, out)
        elif content:
            out.append(TextDelta(t_ns, content))
        if delta.refusal:
            out.append(TextDelta(t_ns, delta.refusal))
        for call in delta.tool_calls or ():
            self._call(call.index or 0, call.id or "", call.function or call.custom or _Function(), t_ns, out)
        if delta.function_call is not None:
            self._call(-1, "", delta.function_call, t_ns, out)

    def _call(self, key: int, call_id: str, function: _Function, t_ns: Nanoseconds, out: list[Event]) -> None:
        name = function.name or ""
        arguments = function.arguments if function.arguments is not None else function.input or ""
        whole = not isinstance(arguments, str)
        text = compact(arguments) if whole else arguments
        calls = self.calls
        if key in calls:
            if call_id and calls.id_of(key) and call_id != calls.id_of(key):
                calls.end(out, t_ns, key)  # a server that never counts its calls: another id is another call
            else:
                calls.name(key, call_id, name)
                if text:
                    calls.add(out, t_ns, key, text)
                return
        elif key in self._told and not name and not call_id:
            if text:  # more of a call that looked whole: shown, but the call was told
                out.append(ToolArguments(t_ns, self._told[key], text))
            return
        if name and (whole or _is_object(text)):
            self._told[key] = calls.whole(out, t_ns, call_id, name, text)
            return
        calls.begin(key, call_id, name)
        if text:
            calls.add(out, t_ns, key, text)


def _parts(content: list[Any], t_ns: Nanoseconds, out: list[Event]) -> None:
    """Content as a list of parts (Mistral and others)."""
    for part in content:
        if not isinstance(part, dict):
            continue
        text = part.get("text") or part.get("thinking")
        if isinstance(text, list):  # Mistral: {"type": "thinking", "thinking": [{"type": "text", "text": …}]}
            text = "".join(piece["text"] for piece in text if isinstance(piece, dict) and isinstance(piece.get("text"), str))
        if isinstance(text, str) and text:
            out.append(ThinkingDelta(t_ns, text) if part.get("type") in ("thinking", "reasoning") else TextDelta(t_ns, text))


def _is_object(text: str) -> bool:
    if not (text.startswith("{") and text.rstrip().endswith("}")):
        return False
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except REFUSED:
        return False
    return True


def _read(record: bytes) -> _Chunk | None:
    try:
        return _decode(record)
    except REFUSED:
        return tolerant(record, _Chunk)


def _error(chunk: _Chunk) -> object:
    """What the chunk says went wrong; None: nothing."""
    if chunk.error is not None and chunk.error != "":
        return chunk.error
    return {"message": chunk.message} if chunk.object == "error" else None


class OpenAIAnswer(ServerSentAnswer):
    """A streamed answer of `/v1/chat/completions` or `/v1/completions`."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks = _Chunks()
        self._refused = 0  # times that chunks said more than a delta

    def deltas(self, kind: type[TextDelta | ThinkingDelta], bodies: list[bytes], t_ns: list[Nanoseconds]) -> Deltas | None:
        if not self._begun or self._torn or self._refused > _PATIENCE or not self._events.idle:
            return None
        decode = _decode_text if kind is TextDelta else _decode_thinking
        texts: list[str] = []
        try:
            for body in bodies:
                if body[:6] != b"data: " or body[-2:] != b"\n\n" or 13 in body:
                    return None
                chunk = decode(body[6:-2])  # refuses what holds a second event
                delta = chunk.choices[0].delta
                text = delta.content or delta.reasoning or delta.reasoning_content
                if not text or not chunk.model:
                    return None
                texts.append(text)
        except REFUSED:
            self._refused += 1  # the other kind, a call, the end, or the other route's shape
            return None
        return Deltas(kind, t_ns, texts)

    def _record(self, name: bytes, record: bytes, t_ns: Nanoseconds, out: list[Event]) -> None:
        try:
            chunk = _decode(record)
        except REFUSED:
            if record.strip() == b"[DONE]":
                self._conclude(out, t_ns)
                return
            found = tolerant(record, _Chunk)
            if found is None:
                self._malformed(out, t_ns, record)
                return
            chunk = found
        self._torn = False
        error = _error(chunk)
        if error is not None:
            self._fail(out, failure(t_ns, 200, error))
            return
        if name == b"error" and not chunk.choices:
            self._fail(out, failure(t_ns, 200, record.decode("utf-8", "replace")))
            return
        if not self._begun:
            self._begin(out, t_ns, chunk.model, chunk.id)
            self._standing.created = count(chunk.created)
        elif chunk.model == "" and self._standing.model is not None:
            self._fail(out, Failed(t_ns, 200, ""))
            return
        self._chunks.payload(chunk, t_ns, out)

    def _conclude(self, out: list[Event], t_ns: Nanoseconds) -> None:
        self._chunks.calls.end_all(out, t_ns)
        self._tell_usage(out)
        self._finish(out, t_ns, self._chunks.reason)

    def _tell_usage(self, out: list[Event]) -> None:
        if self._chunks.usage is not None:
            out.append(self._chunks.usage)
            self._chunks.usage = None

    def _last(self, ending: Ending, t_ns: Nanoseconds, out: list[Event]) -> None:
        if ending == "complete" and self._chunks.reason is not None and not self._failed and not self._finished:
            self._conclude(out, t_ns)
        self._tell_usage(out)


class OpenAIWhole(WholeAnswer):
    """The same, not streamed."""

    def _body(self, body: bytes, t_ns: Nanoseconds, out: list[Event]) -> bool:
        chunk = _read(body)
        if chunk is None:
            return False
        error = _error(chunk)
        if error is not None:
            self._fail(out, failure(t_ns, 200, error))
            return True
        self._begin(out, t_ns, chunk.model, chunk.id)
        chunks = _Chunks()
        events: list[Event] = []
        chunks.payload(chunk, t_ns, events)
        out += [event for event in events if not isinstance(event, EmptyRecord)]
        chunks.calls.end_all(out, t_ns)
        if chunks.usage is not None:
            out.append(chunks.usage)
        if chunks.reason is not None:
            self._finish(out, t_ns, chunks.reason)
        return True
