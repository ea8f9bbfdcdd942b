"""A request's body → what was asked: model, history, offered tools, options. Read once, after its last byte. Never raises.

Rules that hold here:

- Only what is used is read; what is of another kind than the dialect says is left out and named in `problems`.
- Bounds: 256 MiB decoded, 2 million commas (each is an object to build). The rest: history.py, offered.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from qm_proxy.events import Asked, Dialect, Message, Nanoseconds
from qm_proxy.wire.coding import ContentDecoder
from qm_proxy.wire.history import (
    Object,
    anthropic_message,
    native_message,
    openai_message,
    prompt_message,
    responses_item,
    text_of,
)
from qm_proxy.wire.http import Headers
from qm_proxy.wire.offered import offered_tools, tool_choice
from qm_proxy.wire.routes import Route
from qm_proxy.wire.tolerant import REFUSED, compact, tolerant

__all__ = ["is_remote", "read_request"]

_MAX_COMMAS = 2_000_000
_MAX_OPTION = 1024

_SESSION_IN_USER = re.compile(r"_session_([0-9a-fA-F-]{8,64})$")


_NULL = msgspec.Raw(b"null")


class _Body(msgspec.Struct, gc=False):
    """The fields of all dialects. Everything that clients vary is Any; the schemas stay raw."""

    model: Any = None
    name: Any = None  # older native routes
    stream: Any = None
    messages: Any = None
    tools: msgspec.Raw = _NULL
    functions: msgspec.Raw = _NULL
    tool_choice: Any = None
    function_call: Any = None
    options: Any = None
    keep_alive: Any = None
    think: Any = None
    reasoning: Any = None
    reasoning_effort: Any = None
    thinking: Any = None
    output_config: Any = None
    chat_template_kwargs: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    system: Any = None
    prompt: Any = None
    suffix: Any = None
    images: Any = None
    input: Any = None
    instructions: Any = None
    previous_response_id: Any = None
    metadata: Any = None
    prompt_cache_key: Any = None
    conversation: Any = None
    session_id: Any = None
    client_metadata: Any = None
    # what becomes an option, by its wire name
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    seed: Any = None
    stop: Any = None
    stop_sequences: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    repetition_penalty: Any = None
    n: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    stream_options: Any = None
    parallel_tool_calls: Any = None
    truncate: Any = None
    shift: Any = None
    raw: Any = None
    store: Any = None
    encoding_format: Any = None
    dimensions: Any = None
    format: Any = None
    response_format: Any = None


_NATIVE_OPTIONS = ("truncate", "shift", "raw", "logprobs", "top_logprobs", "dimensions")
_OTHER_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_sequences",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "n",
    "logprobs",
    "top_logprobs",
    "stream_options",
    "parallel_tool_calls",
    "store",
    "encoding_format",
    "dimensions",
)

_decode = msgspec.json.Decoder(_Body).decode


def is_remote(model: str | None) -> bool:
    """Does this model's name send the request to the cloud? (Ollama `internal/modelref`: `…:cloud`, `…-cloud`.)"""
    return model is not None and model.endswith((":cloud", "-cloud"))


def read_request(route: Route, headers: Headers, body: bytes, t_ns: Nanoseconds) -> Asked:
    """What a complete request asks. `body` without chunk framing, in its content coding; `t_ns` of its last byte."""
    problems: list[str] = []
    size = len(body)
    coding = next((value for name, value in headers if name.lower() == b"content-encoding"), None)
    if coding is not None:
        decoder = ContentDecoder(coding.decode("latin-1"))
        body = decoder.feed(body)
        decoder.close()
        if decoder.problem is not None:
            problems.append(decoder.problem)
            body = b""
    wire = _read(body, problems)
    native = route.dialect == "ollama"
    return Asked(
        t_ns=t_ns,
        dialect=route.dialect,
        operation=route.operation,
        model=text_of(wire.model) or text_of(wire.name) or None,
        streamed=wire.stream if isinstance(wire.stream, bool) else route.streams_by_default,
        messages=_messages(route, wire, problems),
        tools=offered_tools(wire.tools, problems) + offered_tools(wire.functions, problems),
        tool_choice=tool_choice(wire.tool_choice if wire.tool_choice is not None else wire.function_call),
        options=_options(wire, route.dialect) or None,
        keep_alive=str(wire.keep_alive)[:64] if native and wire.keep_alive is not None else None,
        thinking=_thinking(wire),
        max_output_tokens=_max_output(wire, route.dialect),
        previous_response_id=text_of(wire.previous_response_id)[:256] or None,
        hints=_hints(wire) or None,
        body_bytes=size,
        problems=tuple(problems),
    )


def _read(body: bytes, problems: list[str]) -> _Body:
    if not body.strip():
        if not problems:
            problems.append("the body is empty")
    elif len(body) > 2 * _MAX_COMMAS and body.count(b",") > _MAX_COMMAS:
        problems.append("the body has more than two million parts")
    else:
        try:
            return _decode(body)
        except msgspec.ValidationError:
            problems.append("the body is no JSON object")
        except REFUSED as exc:
            found = tolerant(body, _Body)
            if found is not None:
                return found
            problems.append(f"the body is no JSON: {exc}"[:120])
    return _Body()


def _messages(route: Route, wire: _Body, problems: list[str]) -> tuple[Message, ...]:
    found: list[Message] = []
    read: Callable[[Object, list[Message]], None] = openai_message
    many = wire.messages
    if route.operation == "embeddings":
        many = None
    elif route.operation == "text_completion":
        if text_of(wire.system):
            found.append(Message("system", wire.system))
        prompt = prompt_message(wire.prompt, wire.images)
        if prompt is not None:
            found.append(prompt)
        many = None
    elif route.dialect == "anthropic":
        read = anthropic_message
        if wire.system:
            anthropic_message({"role": "system", "content": wire.system}, found)
    elif route.dialect == "openai-responses":
        read = responses_item
        if text_of(wire.instructions):
            found.append(Message("system", wire.instructions))
        many = [{"role": "user", "content": wire.input}] if isinstance(wire.input, str) else wire.input
    elif route.dialect == "ollama":
        read = native_message
    for one in _objects(many, problems):
        read(one, found)
    return tuple(found)


def _objects(many: object, problems: list[str]) -> Iterable[Object]:
    if many is None:
        return
    if not isinstance(many, list):
        problems.append("the messages are no list")
        return
    odd = 0
    for one in many:
        if isinstance(one, dict):
            yield one
        else:
            odd += 1
    if odd:
        problems.append(f"{odd} of the messages are no objects")


def _options(wire: _Body, dialect: Dialect) -> dict[str, object]:
    """Native `options` as sent, else the sampling fields by their wire names; nothing large. What the dialect's server does not
    read is left out: `num_ctx` on a /v1 route, and `temperature` beside native `options`, change nothing."""
    found: dict[str, object] = {}
    native = dialect == "ollama"
    if native and isinstance(wire.options, dict):
        found |= {name: value for name, value in list(wire.options.items())[:64] if _small(value)}
    for name in _NATIVE_OPTIONS if native else _OTHER_OPTIONS:
        value = getattr(wire, name)
        if value is not None and _small(value):
            found[name] = value
    if native and wire.format is not None and wire.format != "":
        found["format"] = wire.format if wire.format == "json" else "schema"
    if isinstance(wire.response_format, dict) and not native:
        found["response_format"] = text_of(wire.response_format.get("type"))
    if text_of(wire.suffix):
        found["suffix"] = True  # a completion between two texts; the text itself is the user's
    return found


def _small(value: object) -> bool:
    if isinstance(value, (list, dict)):
        return len(value) <= 16 and len(compact(value)) <= _MAX_OPTION
    return not isinstance(value, str) or len(value) <= _MAX_OPTION


def _thinking(wire: _Body) -> str | None:
    for value in (wire.think, wire.reasoning_effort):
        if value is not None:
            return _word(value)
    if isinstance(wire.reasoning, dict):
        for key in ("effort", "enabled"):
            if wire.reasoning.get(key) is not None:
                return _word(wire.reasoning[key])
    if isinstance(wire.thinking, dict):
        kind = text_of(wire.thinking.get("type"))
        if kind:
            return {"enabled": "true", "disabled": "false"}.get(kind, kind[:64])
    if isinstance(wire.output_config, dict) and wire.output_config.get("effort") is not None:
        return _word(wire.output_config["effort"])
    if isinstance(wire.chat_template_kwargs, dict) and wire.chat_template_kwargs.get("enable_thinking") is not None:
        return _word(wire.chat_template_kwargs["enable_thinking"])
    return None


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:64]


def _max_output(wire: _Body, dialect: Dialect) -> int | None:
    """The limit that this dialect's server obeys. Native -1 and -2 mean "no limit of the client's": None."""
    given: list[object]
    if dialect == "ollama":
        given = [wire.options.get("num_predict")] if isinstance(wire.options, dict) else []
    elif dialect == "openai-responses":
        given = [wire.max_output_tokens]
    else:
        given = [wire.max_tokens, wire.max_completion_tokens]
    return next((v for v in given if isinstance(v, int) and not isinstance(v, bool) and v >= 0), None)


def _hints(wire: _Body) -> dict[str, str]:
    """Session ids in the body. `metadata.user_id` names a person, a device and a session: only the last part is taken."""
    found: dict[str, str] = {}
    metadata = wire.metadata if isinstance(wire.metadata, dict) else {}
    user = text_of(metadata.get("user_id"))
    if user.startswith("{"):
        try:
            inner: object = msgspec.json.decode(user)
        except REFUSED:
            inner = None
        if isinstance(inner, dict):
            found["metadata.user_id"] = text_of(inner.get("session_id"))
    elif match := _SESSION_IN_USER.search(user):
        found["metadata.user_id"] = match[1]
    found["metadata.session_id"] = text_of(metadata.get("session_id"))
    found["prompt_cache_key"] = text_of(wire.prompt_cache_key)
    conversation = wire.conversation
    found["conversation"] = text_of(conversation.get("id")) if isinstance(conversation, dict) else text_of(conversation)
    found["session_id"] = text_of(wire.session_id)
    if isinstance(wire.client_metadata, dict):
        found["client_metadata.session_id"] = text_of(wire.client_metadata.get("session_id"))
    return {name: value for name, value in found.items() if 0 < len(value) <= 256}
