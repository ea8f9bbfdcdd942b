"""The Anthropic Messages dialect: /v1/messages. Blocks are opened, filled and closed; each event is a flush of its own.

`message_start` carries an estimate (a quarter of the bytes), unless the first record already knows the count. Thoughts
that come after the first text or tool block are dropped. An error after the first byte is swallowed.
"""

from __future__ import annotations

from random import Random

from probes.sim.dialect import Ask, BadRequest, Record
from probes.sim.gojson import JSON, encode, quote
from probes.sim.native import arguments_object
from probes.sim.openai import check_fields, effort_of
from probes.sim.speech import Call, Message

__all__ = ["MessagesWriter", "error_body", "estimate", "read_messages"]

_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


def error_body(status: int, text: str, rng: Random) -> bytes:
    kind = _ERRORS.get(status, "api_error")
    request_id = f"req_{rng.randbytes(12).hex()}"
    return f'{{"type":"error","error":{{"type":"{kind}","message":{quote(text)}}},"request_id":"{request_id}"}}'.encode()


def read_messages(body: JSON) -> Ask:
    """Raises BadRequest as the route does."""
    check_fields(body, "MessagesRequest")
    if not body.get("model"):
        raise BadRequest("model is required")
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] <= 0:
        raise BadRequest("max_tokens is required and must be positive")
    if not body.get("messages"):
        raise BadRequest("messages is required")
    messages: list[Message] = []
    system = body.get("system")
    if system:
        text = system if isinstance(system, str) else "".join(b.get("text") or "" for b in system)
        messages.append(Message("system", text))
    for item in body["messages"]:
        _message(item, messages)
    options: dict[str, JSON] = {"num_predict": body["max_tokens"]}
    for ours, theirs in (("temperature", "temperature"), ("top_p", "top_p"), ("top_k", "top_k"), ("stop", "stop_sequences")):
        if body.get(theirs) is not None:
            options[ours] = body[theirs]
    thinking = (body.get("thinking") or {}).get("type")
    effort = (body.get("output_config") or {}).get("effort")
    think: bool | str | None = True if thinking == "enabled" else False if thinking == "disabled" else None
    return Ask(
        route="chat",
        dialect="anthropic",
        model=body["model"],
        streamed=bool(body.get("stream")),
        messages=messages,
        tools=[_tool(t) for t in body.get("tools") or [] if "input_schema" in t],
        think=effort_of(effort) if effort and think is not False else think,
        strict_think=False,
        options=options,
        options_count=False,
    )


def _tool(tool: JSON) -> JSON:
    function = {"name": tool["name"], "description": tool.get("description") or "", "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


def _message(item: JSON, messages: list[Message]) -> None:
    role, content = item.get("role") or "", item.get("content")
    if isinstance(content, str):
        messages.append(Message(role, content))
        return
    if not isinstance(content, list):
        raise BadRequest(f"invalid message content type: {type(content).__name__}")
    made = Message(role)
    results: list[Message] = []
    names = {c.id: c.name for m in messages for c in m.calls}
    for block in content:
        match block.get("type"):
            case "text":
                made.content += block.get("text") or ""
            case "thinking":
                made.thinking = block.get("thinking") or ""
            case "image":
                made.images += 1
            case "tool_use":
                made.calls.append(Call(block.get("name") or "", encode(block.get("input") or {}), block.get("id") or ""))
            case "tool_result":
                inner = block.get("content")
                text = inner if isinstance(inner, str) else "".join(b.get("text") or "" for b in inner or [])
                call_id = block.get("tool_use_id") or ""
                results.append(Message("tool", text, tool_name=names.get(call_id, ""), call_id=call_id))
            case _:
                pass
    messages += results
    if made.content or made.calls or made.images or made.thinking or not results:
        messages.append(made)


def estimate(body: JSON) -> int:
    """A quarter of the bytes of roles, contents, system and tools; at least 1."""

    def size(content: JSON) -> int:
        if isinstance(content, str):
            return len(content.encode("utf-8", "replace"))
        if isinstance(content, list):
            return sum(map(size, content))
        if not isinstance(content, dict):
            return 0
        match content.get("type"):
            case "text":
                return size(content.get("text"))
            case "thinking":
                return size(content.get("thinking"))
            case "tool_use":
                return size(content.get("name")) + len(encode(content.get("input") or {}))
            case "tool_result":
                return size(content.get("content"))
        return 0

    total = size(body.get("system")) + sum(size(m.get("role")) + size(m.get("content")) for m in body["messages"])
    for tool in body.get("tools") or []:
        schema = len(encode(tool["input_schema"]).encode()) if "input_schema" in tool else 0
        total += size(tool.get("name")) + size(tool.get("description")) + schema
    return max(1, total // 4)


class MessagesWriter:
    """One message: events, or one object."""

    whole_type = "application/json"

    def __init__(self, ask: Ask, body: JSON, rng: Random) -> None:
        self.stream_headers = {"Cache-Control": "no-cache", "Connection": "keep-alive", "Content-Type": "text/event-stream"}
        self._model = quote(ask.model)
        self._estimate = estimate(body)
        self._rng = rng
        self._id = f"msg_{rng.randbytes(12).hex()}"
        self._began = False
        self._index = 0
        self._open = ""  # the kind of the open block
        self._answered = False  # a text or tool block has begun: no more thinking
        self._called = False

    def record(self, r: Record) -> list[bytes]:
        events: list[bytes] = []
        if not self._began:
            self._began = True
            tokens = r.metrics.prompt_tokens if r.metrics is not None and r.metrics.prompt_tokens else self._estimate
            message = (
                f'{{"id":"{self._id}","type":"message","role":"assistant","model":{self._model},"content":[],'
                f'"usage":{{"input_tokens":{tokens},"output_tokens":0}}}}'
            )
            events.append(_event("message_start", f'"message":{message}'))
        if r.thinking and not self._answered:
            events += self._delta("thinking", r.thinking)
        if r.text:
            self._answered = True
            events += self._delta("text", r.text)
        for call in r.calls:
            self._answered = self._called = True
            events += self._close()
            block = f'{{"type":"tool_use","id":{quote(call.id)},"name":{quote(call.name)},"input":{{}}}}'
            events.append(_event("content_block_start", f'"index":{self._index},"content_block":{block}'))
            delta = f'{{"type":"input_json_delta","partial_json":{quote(call.arguments)}}}'
            events.append(_event("content_block_delta", f'"index":{self._index},"delta":{delta}'))
            self._open = "tool_use"
            events += self._close()
        if r.done:
            events += self._close()
            delta = f'"delta":{{"stop_reason":{_stop_reason(r.reason, self._called)}}},"usage":{_usage(r)}'
            events.append(_event("message_delta", delta))
            events.append(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
        return events

    def failure(self, text: str) -> list[bytes]:
        return []

    def whole(self, r: Record) -> bytes:
        blocks = []
        if r.thinking:
            blocks.append(f'{{"type":"thinking","thinking":{quote(r.thinking)}}}')
        if r.text:
            blocks.append(f'{{"type":"text","text":{quote(r.text)}}}')
        for call in r.calls:
            inner = f'"id":{quote(call.id)},"name":{quote(call.name)},"input":{arguments_object(call)}'
            blocks.append(f'{{"type":"tool_use",{inner}}}')
        content = f"[{','.join(blocks)}]" if blocks else "null"
        reason = f',"stop_reason":{_stop_reason(r.reason, bool(r.calls))}' if r.reason else ""
        return (
            f'{{"id":"{self._id}","type":"message","role":"assistant","model":{self._model},"content":{content}'
            f'{reason},"usage":{_usage(r)}}}\n'
        ).encode("utf-8", "replace")

    def refusal(self, status: int, text: str) -> bytes:
        return error_body(status, text, self._rng)

    def _delta(self, kind: str, piece: str) -> list[bytes]:
        events = []
        if self._open != kind:
            events += self._close()
            self._open = kind
            events.append(_event("content_block_start", f'"index":{self._index},"content_block":{{"type":"{kind}","{kind}":""}}'))
        delta = f'{{"type":"{kind}_delta","{kind}":{quote(piece)}}}'
        events.append(_event("content_block_delta", f'"index":{self._index},"delta":{delta}'))
        return events

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        self._index += 1
        return [_event("content_block_stop", f'"index":{self._index - 1}')]


def _event(kind: str, fields: str) -> bytes:
    return f'event: {kind}\ndata: {{"type":"{kind}",{fields}}}\n\n'.encode("utf-8", "replace")


def _stop_reason(reason: str | None, called: bool) -> str:
    """tool_use wins over everything."""
    if called:
        return '"tool_use"'
    return {"stop": '"end_turn"', "length": '"max_tokens"'}.get(reason or "", "null")


def _usage(r: Record) -> str:
    m = r.metrics
    read, sampled = (m.prompt_tokens, m.sampled_tokens) if m is not None else (0, 0)
    return f'{{"input_tokens":{read},"output_tokens":{sampled}}}'
