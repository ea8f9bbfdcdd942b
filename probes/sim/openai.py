"""The OpenAI chat and completions dialects: /v1/chat/completions, /v1/completions. Server-sent events, `[DONE]` at the end.

Several events leave in one flush: finish chunk, usage chunk and `[DONE]`; a record that holds thinking and text becomes
two chunks. An error after the first byte passes the chunk writer as an empty record: the model's name is then empty.
"""

from __future__ import annotations

import time
from random import Random
from typing import Any

from probes.sim.dialect import Ask, BadRequest, Record
from probes.sim.gojson import JSON, encode, quote
from probes.sim.native import FieldTypes, check_types, logprob
from probes.sim.speech import Call, Message

__all__ = [
    "ChatWriter",
    "CompletionsWriter",
    "check_fields",
    "effort_of",
    "error_body",
    "read_chat",
    "read_completions",
    "text_of",
]

_ERRORS = {400: "invalid_request_error", 404: "not_found_error"}


def error_body(status: int, text: str) -> bytes:
    """`{"error":{…}}` as the OpenAI and Responses routes wrap it. No newline: the routes add it where Go's encoder does."""
    kind = _ERRORS.get(status, "api_error")
    return f'{{"error":{{"message":{quote(text)},"type":"{kind}","param":null,"code":null}}}}'.encode()


def effort_of(value: JSON) -> bool | str | None:
    """reasoning effort → think."""
    if value is None:
        return None
    if value == "none":
        return False
    known = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "ultra": "max", "max": "max"}
    if value not in known:
        raise BadRequest(f'invalid reasoning value: \'{value}\' (must be "high", "medium", "low", "max", or "none")')
    return known[value]


def text_of(content: JSON) -> tuple[str, int]:
    """Text and number of images of a content that is a string, a list of parts, or absent."""
    if content is None:
        return "", 0
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        raise BadRequest(f"invalid message content type: {type(content).__name__}")
    texts, images = [], 0
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text"):
            texts.append(part.get("text") or "")
        elif kind in ("image_url", "input_image"):
            images += 1
        else:
            raise BadRequest("invalid message format")
    return "".join(texts), images


_TYPES: FieldTypes = {
    "model": (str, "string"), "stream": (bool, "*bool"), "messages": (list, "[]openai.Message"), "tools": (list, "[]api.Tool"),
    "max_tokens": (int, "*int"), "max_output_tokens": (int, "*int"), "temperature": ((int, float), "*float64"),
    "top_p": ((int, float), "*float64"), "seed": (int, "*int"), "stream_options": (dict, "*openai.StreamOptions"),
    "instructions": (str, "string"), "system": ((str, list), "string"), "stop_sequences": (list, "[]string"),
}  # fmt: skip


def check_fields(body: JSON, struct: str) -> None:
    """Refuse fields of the wrong type, with Go's words. For all three /v1 dialects."""
    check_types(body, struct, _TYPES)
    for name in ("stop", "stop_sequences"):
        texts = body.get(name) or []
        if not isinstance(texts, str) and any(not isinstance(t, str) for t in texts):
            raise BadRequest(f"json: cannot unmarshal {struct}.{name}: invalid type")


def _sampling(body: JSON) -> dict[str, JSON]:
    options: dict[str, JSON] = {"temperature": body.get("temperature", 1.0), "top_p": body.get("top_p", 1.0)}
    stop = body.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    if body.get("max_tokens") is not None:
        options["num_predict"] = body["max_tokens"]
    for name in ("seed", "frequency_penalty", "presence_penalty"):
        if body.get(name) is not None:
            options[name] = body[name]
    return options


def read_chat(body: JSON) -> Ask:
    check_fields(body, "ChatCompletionRequest")
    messages: list[Message] = []
    for item in body.get("messages") or []:
        text, images = text_of(item.get("content"))
        calls = [
            Call(
                (c.get("function") or {}).get("name") or "", (c.get("function") or {}).get("arguments") or "{}", c.get("id") or ""
            )
            for c in item.get("tool_calls") or []
        ]
        names = {c.id: c.name for m in messages for c in m.calls}
        call_id = item.get("tool_call_id") or ""
        name = item.get("name") or names.get(call_id, "")
        role = item.get("role") or ""
        messages.append(Message(role, text, item.get("reasoning") or "", calls, name if role == "tool" else "", call_id, images))
    if not messages:
        raise BadRequest("[] is too short - 'messages'")
    wanted = body.get("response_format") or {}
    form: JSON = None
    if wanted.get("type") == "json_object":
        form = "json"
    elif wanted.get("type") == "json_schema":
        form = (wanted.get("json_schema") or {}).get("schema")
    return Ask(
        route="chat",
        dialect="openai-chat",
        model=body.get("model") or "",
        streamed=bool(body.get("stream")),
        messages=messages,
        tools=body.get("tools") or [],
        think=effort_of((body.get("reasoning") or {}).get("effort") or body.get("reasoning_effort")),
        format=form,
        options=_sampling(body),
        options_count=False,
        logprobs=bool(body.get("logprobs")),
        top_logprobs=body.get("top_logprobs") or 0,
        render_only=bool(body.get("_debug_render_only")),
    )


def read_completions(body: JSON) -> Ask:
    check_fields(body, "CompletionRequest")
    prompt = body.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise BadRequest("json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string")
    return Ask(
        route="generate",
        dialect="openai-completions",
        model=body.get("model") or "",
        streamed=bool(body.get("stream")),
        prompt=prompt or "",
        suffix=body.get("suffix") or "",
        options=_sampling(body),
        options_count=False,
    )


def wants_usage(body: JSON) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def finish_of(reason: str | None, calls: bool) -> str:
    """JSON of finish_reason: tool_calls only overrides stop; unknown is null."""
    if not reason:
        return "null"
    return '"tool_calls"' if calls and reason == "stop" else quote(reason)


def _calls(calls: Any) -> str:
    parts = (
        f'{{"id":{quote(c.id)},"index":{n},"type":"function","function":{{"name":{quote(c.name)},"arguments":{quote(c.arguments)}}}}}'
        for n, c in enumerate(calls)
    )
    return "[" + ",".join(parts) + "]"


def _usage(record: Record) -> str:
    m = record.metrics
    prompt, answer = (m.prompt_tokens, m.sampled_tokens) if m is not None else (0, 0)
    return f'{{"prompt_tokens":{prompt},"completion_tokens":{answer},"total_tokens":{prompt + answer}}}'


class ChatWriter:
    """`chat.completion.chunk`."""

    whole_type = "application/json"

    def __init__(self, ask: Ask, rng: Random, *, usage: bool) -> None:
        self.stream_headers = {"Content-Type": "text/event-stream"}
        self._id = f"chatcmpl-{rng.randrange(999)}"
        self._model = quote(ask.model)
        self._wants_usage = usage
        self._created: int | None = None
        self._head = ""
        self._first = True
        self._called = False
        self._top = ask.top_logprobs
        self._rng = rng

    def record(self, r: Record) -> list[bytes]:
        if self._created is None:
            self._created = r.unix_ns // 1_000_000_000
            self._head = self._chunk_head(self._model)
        events = ""
        if r.thinking and r.text:
            events += self._chunk("", r.thinking, (), None) + self._chunk(r.text, "", (), r.tokens)
        elif r.text or r.thinking or r.calls or not r.done:
            events += self._chunk(r.text, r.thinking, r.calls, r.tokens)
        if r.done:
            finish = finish_of(r.reason, self._called)
            events += f'{self._head}"choices":[{{"index":0,"delta":{{}},"finish_reason":{finish}}}]}}\n\n'
            if self._wants_usage:
                events += f'{self._head}"choices":[],"usage":{_usage(r)}}}\n\n'
            events += "data: [DONE]\n\n"
        return [events.encode("utf-8", "replace")]

    def failure(self, text: str) -> list[bytes]:
        head = self._chunk_head('""')
        return [f'{head}"choices":[{{"index":0,"delta":{{"content":""}},"finish_reason":null}}]}}\n\n'.encode()]

    def whole(self, r: Record) -> bytes:
        reasoning = f',"reasoning":{quote(r.thinking)}' if r.thinking else ""
        calls = f',"tool_calls":{_calls(r.calls)}' if r.calls else ""
        logprobs = f',"logprobs":{self._logprobs(r.tokens)}' if r.tokens else ""
        return (
            f'{{"id":"{self._id}","object":"chat.completion","created":{r.unix_ns // 1_000_000_000},"model":{self._model},'
            f'"system_fingerprint":"fp_ollama","choices":[{{"index":0,"message":{{"role":"assistant",'
            f'"content":{quote(r.text)}{reasoning}{calls}}},"finish_reason":{finish_of(r.reason, bool(r.calls))}{logprobs}}}],'
            f'"usage":{_usage(r)}}}\n'
        ).encode("utf-8", "replace")

    def refusal(self, status: int, text: str) -> bytes:
        return error_body(status, text)

    def _chunk_head(self, model: str) -> str:
        return (
            f'data: {{"id":"{self._id}","object":"chat.completion.chunk","created":{self._created or 0},'
            f'"model":{model},"system_fingerprint":"fp_ollama",'
        )

    def _chunk(self, text: str, thinking: str, calls: Any, tokens: list[str] | None) -> str:
        role = '"role":"assistant",' if self._first else ""
        self._first = False
        reasoning = f',"reasoning":{quote(thinking)}' if thinking else ""
        called = ""
        if calls:
            self._called = True
            called = f',"tool_calls":{_calls(calls)}'
        logprobs = f',"logprobs":{self._logprobs(tokens)}' if tokens else ""
        delta = f'{{{role}"content":{quote(text)}{reasoning}{called}}}'
        return f'{self._head}"choices":[{{"index":0,"delta":{delta},"finish_reason":null{logprobs}}}]}}\n\n'

    def _logprobs(self, tokens: list[str]) -> str:
        return encode({"content": [logprob(t, self._top, self._rng, native=False) for t in tokens]})


class CompletionsWriter:
    """`text_completion`."""

    whole_type = "application/json"

    def __init__(self, ask: Ask, rng: Random, *, usage: bool) -> None:
        self.stream_headers = {"Content-Type": "text/event-stream"}
        self._id = f"cmpl-{rng.randrange(999)}"
        self._model = quote(ask.model)
        self._wants_usage = usage
        self._zeroed = ',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}' if usage else ""

    def record(self, r: Record) -> list[bytes]:
        events = self._chunk(r, self._model, finish_of(r.reason if r.done else None, False))
        if r.done:
            if self._wants_usage:
                model = f'"model":{self._model},"system_fingerprint":"fp_ollama"'
                events += f'{self._head(r)}"choices":[],{model},"usage":{_usage(r)}}}\n\n'
            events += "data: [DONE]\n\n"
        return [events.encode("utf-8", "replace")]

    def failure(self, text: str) -> list[bytes]:
        return [self._chunk(Record(time.time_ns()), '""', "null").encode()]

    def whole(self, r: Record) -> bytes:
        return (
            f'{{"id":"{self._id}","object":"text_completion","created":{r.unix_ns // 1_000_000_000},"model":{self._model},'
            f'"system_fingerprint":"fp_ollama","choices":[{{"text":{quote(r.text)},"index":0,'
            f'"finish_reason":{finish_of(r.reason, False)}}}],"usage":{_usage(r)}}}\n'
        ).encode("utf-8", "replace")

    def refusal(self, status: int, text: str) -> bytes:
        return error_body(status, text)

    def _head(self, r: Record) -> str:
        return f'data: {{"id":"{self._id}","object":"text_completion","created":{r.unix_ns // 1_000_000_000},'

    def _chunk(self, r: Record, model: str, finish: str) -> str:
        return (
            f'{self._head(r)}"choices":[{{"text":{quote(r.text)},"index":0,"finish_reason":{finish}}}],'
            f'"model":{model},"system_fingerprint":"fp_ollama"{self._zeroed}}}\n\n'
        )
