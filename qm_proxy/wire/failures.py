"""Error objects of every dialect and server → `Failed`, with the innermost text and its numbers.

Ollama wraps its runner's errors: `{"error": TEXT}`, where TEXT is `{"error": {"code": 400, "message": …, "n_ctx": 512}}` as a
string. Others put the text under `message` or `detail`. A `signin_url` that stands beside an error is never read.
"""

from __future__ import annotations

import re

import msgspec

from qm_proxy.events import Failed, Nanoseconds
from qm_proxy.wire.tolerant import REFUSED

__all__ = ["MAX_MESSAGE", "failure", "failure_of_body"]

MAX_MESSAGE = 2000

_TWO_COUNTS = re.compile(r"\((\d{1,12}) tokens\)[^()]*exceeds[^()]*\((\d{1,12}) tokens\)")
_DEPTH = 4


def failure(t_ns: Nanoseconds, status: int, error: object) -> Failed:
    """From an error value as decoded from JSON: a text, or an object in any of the shapes."""
    message, code, n_prompt, n_ctx = _unwrap(error, _DEPTH)
    message = message.strip()[:MAX_MESSAGE]
    if n_prompt is None and (counts := _TWO_COUNTS.search(message)):
        n_prompt, n_ctx = int(counts[1]), int(counts[2])
    return Failed(t_ns, status, message, code, n_prompt, n_ctx)


def failure_of_body(t_ns: Nanoseconds, status: int, body: bytes) -> Failed:
    """From the body of an error status, whatever it is: JSON, an event stream, text, nothing."""
    text = body.strip()
    if not text.startswith(b"{"):
        for line in text[:65536].split(b"\n"):
            if line.startswith((b"data:", b"error:")):
                text = line.partition(b":")[2].strip()
                break
    try:
        found: object = msgspec.json.decode(text)
    except REFUSED:
        return failure(t_ns, status, body[: 4 * MAX_MESSAGE].decode("utf-8", "replace"))
    return failure(t_ns, status, found)


_Found = tuple[str, str | None, int | None, int | None]


def _unwrap(error: object, depth: int) -> _Found:
    if isinstance(error, str):
        error = error.strip()
        start = error.find("{") if depth > 0 else -1
        if start >= 0:
            try:
                inner: object = msgspec.json.decode(error[start:])
            except REFUSED:
                inner = None
            # Behind other words only an error object counts: a tool parser's error quotes the model's own JSON.
            if isinstance(inner, dict) and (start == 0 or "error" in inner) and (found := _of_object(inner, depth - 1))[0]:
                return found
        return error, None, None, None
    if isinstance(error, dict):
        return _of_object(error, depth - 1)
    return "" if error is None else str(error)[:MAX_MESSAGE], None, None, None


def _of_object(error: dict[object, object], depth: int) -> _Found:
    for key in ("error", "message", "detail", "msg"):
        value = error.get(key)
        if value and depth >= 0:
            message, code, n_prompt, n_ctx = _unwrap(value, depth)
            own = error.get("code")
            kind = error.get("type")
            if code is None:
                code = own if isinstance(own, str) and own else kind if isinstance(kind, str) and kind != "error" else None
            return (
                message,
                code,
                n_prompt if n_prompt is not None else _count(error.get("n_prompt_tokens")),
                n_ctx if n_ctx is not None else _count(error.get("n_ctx")),
            )
    return "", None, None, None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
