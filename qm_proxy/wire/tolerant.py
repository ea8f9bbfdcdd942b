"""JSON that msgspec refuses and clients read: lone surrogates, NaN, broken UTF-8. Only when the fast reading failed."""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

__all__ = ["REFUSED", "compact", "evidence", "tolerant"]

T = TypeVar("T")

REFUSED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises on bytes it does not take (broken UTF-8 inside a text is a ValueError)."""


def tolerant(raw: bytes, kind: type[T]) -> T | None:
    """`raw` as `kind`, with U+FFFD for what is no text and null for what is no number. None: no JSON of that kind."""
    try:
        value = json.loads(raw.decode("utf-8", "replace"), parse_constant=lambda _: None)
        again = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return msgspec.json.decode(again, type=kind)
    except REFUSED:
        return None


def compact(value: object) -> str:
    """JSON text of what came out of msgspec, key order kept; "" where it is nested too deeply."""
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError:
        return ""


def evidence(raw: bytes) -> str:
    """The beginning of bytes that should have been a record, ≤ 80 characters."""
    return raw.strip()[:160].decode("utf-8", "backslashreplace")[:80]
