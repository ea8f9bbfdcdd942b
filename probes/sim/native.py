"""The native dialect: /api/chat and /api/generate, NDJSON. Field order and omissions as in api/types.go and the captures."""

from __future__ import annotations

import re
from random import Random
from typing import Any, TypeAlias

from probes.sim.clock import rfc3339
from probes.sim.dialect import Ask, BadRequest, Metrics, Record
from probes.sim.gojson import JSON, encode, quote
from probes.sim.speech import Call, Message

__all__ = [
    "FieldTypes",
    "NativeWriter",
    "arguments_object",
    "check_types",
    "keep_alive_seconds",
    "kind_of",
    "message_of",
    "read_chat",
    "read_generate",
]

FieldTypes: TypeAlias = dict[str, tuple[type | tuple[type, ...], str]]
"""Field → the Python types that its JSON may have, and how Go names its type."""
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_seconds(value: JSON) -> float | None:
    """Seconds; negative is for ever. A number counts seconds, a string is a Go duration."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        match = re.fullmatch(r"(-?)((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+|0)", value)
        if match:
            parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", match[2])
            total = sum(float(n) * _UNITS[unit] for n, unit in parts)
            return -total if match[1] else total
        raise BadRequest(f'time: invalid duration "{value}"')
    raise BadRequest(f"json: cannot unmarshal {kind_of(value)} into Go struct field .keep_alive of type api.Duration")


def kind_of(value: JSON) -> str:
    return {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}.get(type(value), "null")


def check_types(body: JSON, struct: str, fields: FieldTypes) -> None:
    """Refuse a field of the wrong JSON type with the sentence of Go's decoder."""
    for name, (wanted, shown) in fields.items():
        value = body.get(name)
        wrong = value is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool))
        if wrong:
            raise BadRequest(f"json: cannot unmarshal {kind_of(value)} into Go struct field {struct}.{name} of type {shown}")


_COMMON: FieldTypes = {
    "model": (str, "string"),
    "stream": (bool, "bool"),
    "options": (dict, "map[string]interface {}"),
    "truncate": (bool, "bool"),
    "shift": (bool, "bool"),
    "logprobs": (bool, "bool"),
    "top_logprobs": (int, "int"),
}
_SAMPLING: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_predict", "num_keep", "seed"), (int, float)
    ),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"), (int, float)),
    "stop": (list,),
    "use_mmap": (bool,),
}


def _common(body: JSON, route: Any) -> Ask:
    form = body.get("format") or None
    if isinstance(form, str) and form != "json":
        raise BadRequest(f'invalid format: {encode(form)}; expected "json" or a valid JSON Schema object')
    think = body.get("think")
    if think is not None and not (isinstance(think, bool) or think in ("low", "medium", "high", "max")):
        raise BadRequest(f'invalid think value: {encode(think)} (must be "high", "medium", "low", "max", true, or false)')
    options = body.get("options") or {}
    for name, wanted in _SAMPLING.items():
        value = options.get(name)
        if value is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted != (bool,))):
            kind = "boolean" if wanted == (bool,) else "array" if wanted == (list,) else "integer"
            raise BadRequest(f'option "{name}" must be of type {kind}')
    if any(not isinstance(s, str) for s in options.get("stop") or ()):
        raise BadRequest('option "stop" must be of an array of strings')
    return Ask(
        route=route,
        dialect="ollama",
        model=body.get("model") or body.get("name") or "",
        streamed=body.get("stream") is not False,
        think=think,
        format=form,
        options=options,
        keep_alive_s=keep_alive_seconds(body.get("keep_alive")),
        truncate=body.get("truncate") is not False,
        shift=body.get("shift") is not False,
        logprobs=bool(body.get("logprobs")),
        top_logprobs=body.get("top_logprobs") or 0,
        render_only=bool(body.get("_debug_render_only")),
    )


def read_chat(body: JSON) -> Ask:
    """Raises BadRequest as the server's decoder would."""
    check_types(body, "ChatRequest", _COMMON | {"messages": (list, "[]api.Message"), "tools": (list, "api.Tools")})
    ask = _common(body, "chat")
    ask.messages = [message_of(m) for m in body.get("messages") or []]
    ask.tools = body.get("tools") or []
    return ask


def read_generate(body: JSON) -> Ask:
    fields: FieldTypes = {
        "prompt": (str, "string"), "system": (str, "string"), "suffix": (str, "string"), "raw": (bool, "bool"),
    }  # fmt: skip
    check_types(body, "GenerateRequest", _COMMON | fields)
    ask = _common(body, "generate")
    ask.prompt, ask.system = body.get("prompt") or "", body.get("system") or ""
    ask.suffix, ask.raw = body.get("suffix") or "", bool(body.get("raw"))
    return ask


def message_of(item: JSON) -> Message:
    if not isinstance(item, dict):
        raise BadRequest(f"json: cannot unmarshal {kind_of(item)} into Go struct field ChatRequest.messages of type api.Message")
    check_types(item, "ChatRequest.messages", {"role": (str, "string"), "content": (str, "string")})
    calls = []
    for call in item.get("tool_calls") or []:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            where = ".messages.tool_calls.function.arguments of type api.ToolCallFunctionArguments"
            raise BadRequest(f"json: cannot unmarshal string into Go struct field {where}")
        calls.append(Call(function.get("name") or "", encode(arguments or {}), call.get("id") or ""))
    return Message(
        role=item.get("role") or "",
        content=item.get("content") or "",
        thinking=item.get("thinking") or "",
        calls=calls,
        tool_name=item.get("tool_name") or "",
        call_id=item.get("tool_call_id") or "",
        images=len(item.get("images") or []),
    )


def arguments_object(call: Call) -> str:
    """Arguments as the native dialect carries them: an object. Text that is none stands there as the string it is."""
    return call.arguments if call.arguments.startswith("{") and call.arguments.endswith("}") else quote(call.arguments)


def calls_json(calls: Any) -> str:
    parts = (
        f'{{"id":{quote(c.id)},"function":{{"index":{n},"name":{quote(c.name)},"arguments":{arguments_object(c)}}}}}'
        for n, c in enumerate(calls)
    )
    return "[" + ",".join(parts) + "]"


class NativeWriter:
    """NDJSON: one object a line, one line a flush."""

    whole_type = "application/json; charset=utf-8"

    def __init__(self, ask: Ask, rng: Random) -> None:
        self.stream_headers = {"Content-Type": "application/x-ndjson"}
        self._chat = ask.route == "chat"
        self._model = f'{{"model":{quote(ask.model)},"created_at":"'
        self._top = ask.top_logprobs
        self._rng = rng

    def record(self, record: Record) -> list[bytes]:
        return [self._line(record).encode("utf-8", "replace") + b"\n"]

    def failure(self, text: str) -> list[bytes]:
        return [f'{{"error":{quote(text)}}}\n'.encode()]

    def whole(self, record: Record) -> bytes:
        return self._line(record).encode("utf-8", "replace")

    def refusal(self, status: int, text: str) -> bytes:
        return f'{{"error":{quote(text)}}}'.encode()

    def _line(self, r: Record) -> str:
        stamp = rfc3339(r.unix_ns)
        if self._chat:
            thinking = f',"thinking":{quote(r.thinking)}' if r.thinking else ""
            calls = f',"tool_calls":{calls_json(r.calls)}' if r.calls else ""
            payload = f'"message":{{"role":"assistant","content":{quote(r.text)}{thinking}{calls}}}'
        else:
            payload = f'"response":{quote(r.text)}' + (f',"thinking":{quote(r.thinking)}' if r.thinking else "")
        tail = f',"logprobs":{self._logprobs(r.tokens)}' if r.tokens else ""
        if not r.done:
            return f'{self._model}{stamp}",{payload},"done":false{tail}}}'
        reason = f',"done_reason":{quote(r.reason)}' if r.reason else ""
        context = f',"context":{encode(r.context)}' if r.context is not None else ""
        calls = f',"tool_calls":{calls_json(r.calls)}' if r.calls and not self._chat else ""
        return f'{self._model}{stamp}",{payload},"done":true{reason}{context}{metrics_json(r.metrics)}{calls}{tail}}}'

    def _logprobs(self, tokens: list[str]) -> str:
        return encode([logprob(t, self._top, self._rng, native=True) for t in tokens])


def metrics_json(m: Metrics | None) -> str:
    """Zero is left out, as Go's omitempty does."""
    if m is None:
        return ""
    fields = (
        ("total_duration", m.total_ns), ("load_duration", m.load_ns), ("prompt_eval_count", m.prompt_tokens),
        ("prompt_eval_duration", m.prefill_ns), ("eval_count", m.sampled_tokens), ("eval_duration", m.decode_ns),
    )  # fmt: skip
    return "".join(f',"{name}":{value}' for name, value in fields if value)


def logprob(token: str, top: int, rng: Random, *, native: bool) -> dict[str, Any]:
    """An entry of `logprobs`: invented numbers of a plausible size, in the order of the real fields."""

    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}

    first = -rng.expovariate(1.0)
    found = entry(token, first)
    if top or not native:
        found["top_logprobs"] = [entry(token if n == 0 else f"{token}{n}", first - n * 0.5) for n in range(top)]
    return found
