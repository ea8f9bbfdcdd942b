"""How the dialect tests feed a decoder and look at what it said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from qm_proxy.events import Ending, Event, Nanoseconds
from qm_proxy.wire.decoder import Decoder

E = TypeVar("E")


def run(decoder: Decoder, *pieces: bytes, ending: Ending = "complete") -> list[Event]:
    """Feed the pieces at times 1, 2, …; close one later."""
    events: list[Event] = []
    for t, piece in enumerate(pieces, 1):
        events += decoder.feed(piece, Nanoseconds(t))
    return events + decoder.close(ending, Nanoseconds(len(pieces) + 1))


def names(events: Iterable[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def only(events: Iterable[Event], kind: type[E]) -> E:
    """The one event of a kind."""
    found = [event for event in events if isinstance(event, kind)]
    assert len(found) == 1, found
    return found[0]


def every(events: Iterable[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def line(**record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def sse(record: Any, name: str | None = None) -> bytes:
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(record, ensure_ascii=False).encode() + b"\n\n"
