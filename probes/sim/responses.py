"""The OpenAI Responses dialect: /v1/responses. Events are Go maps, so their keys are sorted and `type` comes last; each is
a flush of its own. A whole answer is a struct with its own order. There is no `[DONE]`; an error after the first byte is
swallowed: the body ends after the last delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from probes.sim.dialect import Ask, BadRequest, Record
from probes.sim.gojson import JSON, encode, quote
from probes.sim.openai import check_fields, effort_of, error_body, text_of
from probes.sim.speech import Call, Message

__all__ = ["ResponsesWriter", "read_responses"]


class Raw(str):
    """JSON text that is inserted as it is (a Go RawMessage keeps its own key order)."""

    __slots__ = ()


def sorted_json(value: Any) -> str:
    """A Go map: sorted keys, raw parts kept."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(k)}:{sorted_json(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(sorted_json, value)) + "]"
    return encode(value)


def read_responses(body: JSON) -> Ask:
    """Raises BadRequest for items and contents that the server does not know."""
    check_fields(body, "ResponsesRequest")
    messages: list[Message] = []
    if body.get("instructions"):
        messages.append(Message("system", body["instructions"]))
    asked = body.get("input")
    if isinstance(asked, str):
        messages.append(Message("user", asked))
    elif isinstance(asked, list):
        _items(asked, messages)
    elif asked is not None:
        raise BadRequest("input must be a string or array")
    options: dict[str, JSON] = {}
    for ours, theirs in (("num_predict", "max_output_tokens"), ("temperature", "temperature"), ("top_p", "top_p")):
        if body.get(theirs) is not None:
            options[ours] = body[theirs]
    form = ((body.get("text") or {}).get("format")) or {}
    return Ask(
        route="chat",
        dialect="openai-responses",
        model=body.get("model") or "",
        streamed=bool(body.get("stream")),
        messages=messages,
        tools=_tools(body.get("tools") or []),
        think=effort_of((body.get("reasoning") or {}).get("effort")),
        format=form.get("schema") if form.get("type") == "json_schema" else "json" if form.get("type") == "json_object" else None,
        options=options,
        options_count=False,
    )


def _items(items: list[JSON], messages: list[Message]) -> None:
    thinking = ""
    for item in items:
        kind = item.get("type") or ("message" if item.get("role") else "")
        match kind:
            case "message":
                text, images = text_of(item.get("content"))
                messages.append(Message(item.get("role") or "", text, thinking, images=images))
                thinking = ""
            case "function_call":
                call = Call(item.get("name") or "", item.get("arguments") or "{}", item.get("call_id") or "")
                if messages and messages[-1].role == "assistant":
                    messages[-1].calls.append(call)
                else:
                    messages.append(Message("assistant", "", thinking, [call]))
                thinking = ""
            case "function_call_output":
                output = item.get("output")
                text, images = (output, 0) if isinstance(output, str) else text_of(output)
                names = {c.id: c.name for m in messages for c in m.calls}
                call_id = item.get("call_id") or ""
                messages.append(Message("tool", text, tool_name=names.get(call_id, ""), call_id=call_id, images=images))
            case "reasoning":
                thinking = item.get("encrypted_content") or ""
            case _:
                raise BadRequest(f"unknown input item type: {kind}")


def _tools(tools: list[JSON]) -> list[JSON]:
    """Function tools in the chat shape; members of a namespace become `ns.member`."""
    found: list[JSON] = []
    for tool in tools:
        if tool.get("type") == "namespace":
            for member in tool.get("tools") or []:
                found.append(_function(member, f"{tool.get('name')}."))
        elif tool.get("type") == "function":
            found.append(_function(tool, ""))
    return found


def _function(tool: JSON, prefix: str) -> JSON:
    function = {
        "name": f"{prefix}{tool.get('name')}",
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
    }
    return {"type": "function", "function": function}


class ResponsesWriter:
    """One response: numbered events, or one object."""

    whole_type = "application/json"

    def __init__(self, ask: Ask, body: JSON, rng: Random) -> None:
        self.stream_headers = {"Cache-Control": "no-cache", "Connection": "keep-alive", "Content-Type": "text/event-stream"}
        self._ask = ask
        self._body = body
        self._id = f"resp_{rng.randrange(999_999)}"
        self._rng = rng
        self._sequence = 0
        self._output_index = 0
        self._created: int | None = None
        self._reasoning_id = ""
        self._thoughts = ""
        self._message_id = ""
        self._text = ""
        self._output: list[dict[str, Any]] = []
        self._called = False

    # --- streamed -----------------------------------------------------------------------------------------------------

    def record(self, r: Record) -> list[bytes]:
        events: list[bytes] = []
        if self._created is None:
            self._created = r.unix_ns // 1_000_000_000
            for kind in ("response.created", "response.in_progress"):
                events.append(self._event(kind, response=self._response("in_progress", None, None)))
        if r.thinking:
            events += self._think(r.thinking)
        if r.calls:
            events += self._call(r.calls)
        elif r.text and not self._called:
            events += self._say(r.text)
        if r.done:
            events += self._end_reasoning() + self._end_message()
            completed = self._response("completed", r.unix_ns // 1_000_000_000, r)
            events.append(self._event("response.completed", response=completed))
        return events

    def failure(self, text: str) -> list[bytes]:
        return []

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = sorted_json({**fields, "sequence_number": self._sequence, "type": kind})
        self._sequence += 1
        return f"event: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")

    def _think(self, piece: str) -> list[bytes]:
        events = []
        if not self._reasoning_id:
            self._reasoning_id = f"rs_{self._rng.randrange(999_999)}"
            item = {"id": self._reasoning_id, "summary": [], "type": "reasoning"}
            events.append(self._event("response.output_item.added", item=item, output_index=self._output_index))
        self._thoughts += piece
        where = {"item_id": self._reasoning_id, "output_index": self._output_index, "summary_index": 0}
        events.append(self._event("response.reasoning_summary_text.delta", delta=piece, **where))
        return events

    def _end_reasoning(self) -> list[bytes]:
        if not self._reasoning_id or self._output:
            return []
        where = {"item_id": self._reasoning_id, "output_index": self._output_index, "summary_index": 0}
        item = {
            "encrypted_content": self._thoughts, "id": self._reasoning_id,
            "summary": [{"text": self._thoughts, "type": "summary_text"}], "type": "reasoning",
        }  # fmt: skip
        events = [
            self._event("response.reasoning_summary_text.done", text=self._thoughts, **where),
            self._event("response.output_item.done", item=item, output_index=self._output_index),
        ]
        self._output.append(item)
        self._output_index += 1
        return events

    def _say(self, piece: str) -> list[bytes]:
        events = []
        if not self._message_id:
            events += self._end_reasoning()
            self._message_id = f"msg_{self._rng.randrange(999_999)}"
            item = {"content": [], "id": self._message_id, "role": "assistant", "status": "in_progress", "type": "message"}
            events.append(self._event("response.output_item.added", item=item, output_index=self._output_index))
            events.append(self._event("response.content_part.added", part=_part(""), **self._where()))
        self._text += piece
        events.append(self._event("response.output_text.delta", delta=piece, logprobs=[], **self._where()))
        return events

    def _end_message(self) -> list[bytes]:
        if not self._message_id:
            return []
        item = _message(self._message_id, self._text)
        events = [
            self._event("response.output_text.done", logprobs=[], text=self._text, **self._where()),
            self._event("response.content_part.done", part=_part(self._text), **self._where()),
            self._event("response.output_item.done", item=item, output_index=self._output_index),
        ]
        self._output.append(item)
        self._output_index += 1
        self._message_id = ""
        return events

    def _call(self, calls: Sequence[Call]) -> list[bytes]:
        events = self._end_reasoning() + self._end_message()
        self._called = True
        group = self._rng.randrange(999_999)
        for n, call in enumerate(calls):
            item_id, index = f"fc_{group}_{n}", self._output_index
            item = _function_call(item_id, call)
            opened = {**item, "arguments": "", "status": "in_progress"}
            where = {"item_id": item_id, "output_index": index}
            events += [
                self._event("response.output_item.added", item=opened, output_index=index),
                self._event("response.function_call_arguments.delta", delta=call.arguments, **where),
                self._event("response.function_call_arguments.done", arguments=call.arguments, **where),
                self._event("response.output_item.done", item=item, output_index=index),
            ]
            self._output.append(item)
            self._output_index += 1
        return events

    def _where(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._message_id, "output_index": self._output_index}

    def _response(self, status: str, completed_at: int | None, r: Record | None) -> dict[str, Any]:
        return {
            **self._echo(), "background": False, "completed_at": completed_at, "created_at": self._created, "error": None,
            "id": self._id, "incomplete_details": None, "max_tool_calls": None, "metadata": {}, "object": "response",
            "output": list(self._output), "parallel_tool_calls": True, "previous_response_id": None, "prompt_cache_key": None,
            "safety_identifier": None, "service_tier": "default", "status": status, "store": False, "tool_choice": "auto",
            "truncation": "disabled", "usage": _usage(r) if r is not None else None,
        }  # fmt: skip

    def _echo(self) -> dict[str, Any]:
        """What the answer repeats of the request."""
        body = self._body
        effort = (body.get("reasoning") or {}).get("effort")
        form = (body.get("text") or {}).get("format") or {"type": "text"}
        if "schema" in form:
            form = {**form, "schema": Raw(encode(form["schema"]))}
        tools = [
            {"description": t.get("description"), "name": t.get("name"), "parameters": t.get("parameters"),
             "strict": t.get("strict"), "type": t.get("type")}
            for t in body.get("tools") or []
        ]  # fmt: skip
        return {
            "frequency_penalty": body.get("frequency_penalty") or 0, "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"), "model": self._ask.model,
            "presence_penalty": body.get("presence_penalty") or 0,
            "reasoning": {"effort": effort, "summary": None} if effort else None,
            "temperature": body.get("temperature", 1), "text": {"format": form}, "tools": tools, "top_logprobs": 0,
            "top_p": body.get("top_p", 1),
        }  # fmt: skip

    # --- whole --------------------------------------------------------------------------------------------------------

    def whole(self, r: Record) -> bytes:
        output: list[dict[str, Any]] = []
        if r.thinking:
            output.append(
                {"id": f"rs_{self._rng.randrange(999_999)}", "type": "reasoning",
                 "summary": [{"type": "summary_text", "text": r.thinking}], "encrypted_content": r.thinking}
            )  # fmt: skip
        for n, call in enumerate(r.calls):
            made = _function_call(f"fc_{self._rng.randrange(999_999)}_{n}", call)
            output.append({k: made[k] for k in ("id", "type", "status", "call_id", "name", "arguments")})
        if not r.calls:
            part = {"type": "output_text", "text": r.text, "annotations": [], "logprobs": []}
            output.append(
                {"id": f"msg_{self._rng.randrange(999_999)}", "type": "message", "status": "completed", "role": "assistant",
                 "content": [part]}
            )  # fmt: skip
        now = r.unix_ns // 1_000_000_000
        e = self._echo()
        tools = [
            {k: t[k] for k in ("type", "name", "description", "strict")} | {"parameters": Raw(sorted_json(t["parameters"]))}
            for t in e["tools"]
        ]
        usage = _usage(r)
        answer: dict[str, Any] = {
            "id": self._id, "object": "response", "created_at": now, "completed_at": now, "status": "completed",
            "incomplete_details": None, "model": e["model"], "previous_response_id": None, "instructions": e["instructions"],
            "output": output, "error": None, "tools": tools, "tool_choice": "auto", "truncation": "disabled",
            "parallel_tool_calls": True, "text": e["text"], "top_p": e["top_p"], "presence_penalty": e["presence_penalty"],
            "frequency_penalty": e["frequency_penalty"], "top_logprobs": 0, "temperature": e["temperature"],
            "reasoning": e["reasoning"],
            "usage": {k: usage[k] for k in ("input_tokens", "output_tokens", "total_tokens", "input_tokens_details",
                                            "output_tokens_details")},
            "max_output_tokens": e["max_output_tokens"], "max_tool_calls": None, "store": False, "background": False,
            "service_tier": "default", "metadata": {}, "safety_identifier": None, "prompt_cache_key": None,
        }  # fmt: skip
        return (ordered_json(answer) + "\n").encode("utf-8", "replace")

    def refusal(self, status: int, text: str) -> bytes:
        return error_body(status, text)


def ordered_json(value: Any) -> str:
    """A Go struct: given order, raw parts kept."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(k)}:{ordered_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(ordered_json, value)) + "]"
    return encode(value)


def _part(text: str) -> dict[str, Any]:
    return {"annotations": [], "logprobs": [], "text": text, "type": "output_text"}


def _message(item_id: str, text: str) -> dict[str, Any]:
    return {"content": [_part(text)], "id": item_id, "role": "assistant", "status": "completed", "type": "message"}


def _function_call(item_id: str, call: Call) -> dict[str, Any]:
    return {
        "arguments": call.arguments, "call_id": call.id, "id": item_id, "name": call.name, "status": "completed",
        "type": "function_call",
    }  # fmt: skip


def _usage(r: Record) -> dict[str, Any]:
    m = r.metrics
    read, sampled = (m.prompt_tokens, m.sampled_tokens) if m is not None else (0, 0)
    return {
        "input_tokens": read, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": sampled,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + sampled,
    }  # fmt: skip
