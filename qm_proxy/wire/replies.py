"""What we ever say ourselves: that the upstream cannot be reached, and a clean end when the guard cuts. Pure, stdlib only.

Rules that hold here:

- Every reply has the shape that the caller's dialect gives such a reply, so that its SDK shows our sentence as it would show
  the server's. Ours are marked by the header `X-QM-Proxy`.
- Nothing is invented: no durations, no token counts, no ids. What a terminal record must repeat is passed in as `Standing`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from qm_proxy.events import Dialect
from qm_proxy.wire.routes import Shape, route_of, shape_of

__all__ = ["MARK", "OpenItem", "Standing", "clean_end", "error_body", "unreachable"]

MARK = "X-QM-Proxy"
"""The response header that tells our own answers from the server's."""

_MAX_SENTENCE = 2048


def unreachable(head: bytes, upstream_url: str, reason: str) -> bytes:
    """The whole 502 for a request whose upstream cannot be reached. `head`: what was read of the request (may be empty, torn
    or no HTTP at all: then the native shape). `reason`: the system's word ("Connection refused"). Never raises."""
    method, target, version = _request_line(head)
    where, why = _one_line(upstream_url), _one_line(reason)
    sentence = (
        f"qm-proxy cannot reach Ollama at {where}{': ' + why if why else ''}. "
        "Start it with `ollama serve`, or restart qm-proxy with --upstream and the right URL."
    )
    body = error_body(shape_of(route_of(method, target).path), sentence, code="upstream_unreachable")
    lines = (
        f"HTTP/{version} 502 Bad Gateway",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
        f"{MARK}: unreachable",
        "",
        "",
    )
    return "\r\n".join(lines).encode("ascii") + (b"" if method == "HEAD" else body)


def error_body(shape: Shape, sentence: str, *, code: str | None = None) -> bytes:
    """An error object as `shape`'s servers send it. `code` appears only where the dialect has a place for it."""
    error: dict[str, object]
    if shape == "anthropic":
        error = {"type": "error", "error": {"type": "api_error", "message": sentence}}
    elif shape == "openai":
        error = {"error": {"message": sentence, "type": "api_error", "param": None, "code": code}}
    else:
        error = {"error": sentence}
    return _json(error)


# --- the guard's end --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class OpenItem:
    """An output item (Responses) or content block (Anthropic) that has begun and not ended."""

    kind: str  # "text", "thinking" or "tool"
    index: int  # output_index, or the block's index
    item_id: str = ""  # Responses only


@dataclass(slots=True)
class Standing:
    """Where an answer stands: what its dialect's terminal records must repeat. Decoders keep it (`Decoder.standing()`)."""

    response_id: str | None = None
    model: str | None = None
    created: int | None = None  # OpenAI: `created`, whole seconds; Responses: `created_at`
    created_at: str | None = None  # native: the last record's stamp
    generate: bool = False  # native: /api/generate rather than /api/chat
    sequence: int = 0  # Responses: the next `sequence_number`
    output_tokens: int = 0  # Anthropic: the server's own last statement (SDKs need the field to be there)
    open: list[OpenItem] = field(default_factory=list)


def clean_end(dialect: Dialect, standing: Standing, *, chunked: bool = True, text: str = "") -> bytes:
    """The dialect's terminal records with its word for "length", ready to be written behind a complete record.

    `chunked`: with chunk framing and the last chunk (else the bare records, for a close-delimited answer). `text`: what the
    open item has said so far; only Responses repeats it. Raises ValueError for "other": such an answer has no end of its own.
    """
    if dialect == "ollama":
        records = [_native_end(standing)]
    elif dialect == "openai-chat":
        records = [_sse(_openai_end(standing, chat=True)), b"data: [DONE]\n\n"]
    elif dialect == "openai-completions":
        records = [_sse(_openai_end(standing, chat=False)), b"data: [DONE]\n\n"]
    elif dialect == "openai-responses":
        records = _responses_end(standing, text)
    elif dialect == "anthropic":
        records = _anthropic_end(standing)
    else:
        raise ValueError("an answer of no known dialect has no terminal record")
    if not chunked:
        return b"".join(records)
    return b"".join(b"%x\r\n%s\r\n" % (len(record), record) for record in records) + b"0\r\n\r\n"


def _native_end(standing: Standing) -> bytes:
    record: dict[str, object] = {"model": standing.model or ""}
    if standing.created_at is not None:
        record["created_at"] = standing.created_at
    if standing.generate:
        record["response"] = ""
    else:
        record["message"] = {"role": "assistant", "content": ""}
    return _json(record | {"done": True, "done_reason": "length"}) + b"\n"


def _openai_end(standing: Standing, *, chat: bool) -> dict[str, object]:
    choice: dict[str, object] = {"index": 0, "finish_reason": "length"}
    if chat:
        choice["delta"] = {}
    else:
        choice["text"] = ""
    return {
        "id": standing.response_id or "",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": standing.created or 0,
        "model": standing.model or "",
        "choices": [choice],
    }


def _responses_end(standing: Standing, text: str) -> list[bytes]:
    """Ollama ends a Responses stream with `response.completed` at the limit too, and at least one agent (Codex) takes
    `response.incomplete` for a broken stream and asks again. So: the terminal event that every client takes for the end,
    with the truth inside it (`status: incomplete`, `max_output_tokens`)."""
    events: list[dict[str, object]] = []
    output: list[dict[str, object]] = []
    for item in standing.open:
        place: dict[str, object] = {"item_id": item.item_id, "output_index": item.index}
        if item.kind == "thinking":
            whole: dict[str, object] = {
                "id": item.item_id,
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": text}],
            }
            events.append({"type": "response.reasoning_summary_text.done", **place, "summary_index": 0, "text": text})
        elif item.kind == "text":
            part: dict[str, object] = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            whole = {
                "id": item.item_id,
                "type": "message",
                "role": "assistant",
                "status": "incomplete",
                "content": [part],
            }
            events.append({"type": "response.output_text.done", **place, "content_index": 0, "text": text, "logprobs": []})
            events.append({"type": "response.content_part.done", **place, "content_index": 0, "part": part})
        else:
            continue  # never cut inside a tool call: half an argument must not look whole
        events.append({"type": "response.output_item.done", "output_index": item.index, "item": whole})
        output.append(whole)
    events.append(
        {
            "type": "response.completed",
            "response": {
                "id": standing.response_id or "",
                "object": "response",
                "created_at": standing.created or 0,
                "model": standing.model or "",
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "error": None,
                "output": output,
                "tools": [],
                "tool_choice": "auto",
                "parallel_tool_calls": True,
                "usage": None,
            },
        }
    )
    return [
        _sse({**event, "sequence_number": number}, name=str(event["type"]))
        for number, event in enumerate(events, standing.sequence)
    ]


def _anthropic_end(standing: Standing) -> list[bytes]:
    """`usage.output_tokens` repeats the server's last statement: the official SDK fails on a `message_delta` without it."""
    events: list[dict[str, object]] = [{"type": "content_block_stop", "index": item.index} for item in standing.open]
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {"output_tokens": standing.output_tokens},
        }
    )
    events.append({"type": "message_stop"})
    return [_sse(event, name=str(event["type"])) for event in events]


def _sse(record: dict[str, object], *, name: str | None = None) -> bytes:
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _json(record) + b"\n\n"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _request_line(head: bytes) -> tuple[str, bytes, str]:
    """(method, target, version of the answer). Anything unreadable gives ("", b"", "1.1")."""
    line = head[:65536].lstrip(b"\r\n").split(b"\n", 1)[0].rstrip(b"\r")
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not method.isascii() or not method.replace(b"-", b"").isalpha() or version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return "", b"", "1.1"
    return method.decode("ascii"), target, version[5:].decode("ascii")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_SENTENCE].rstrip(".")
