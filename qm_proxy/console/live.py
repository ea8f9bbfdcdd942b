"""The event feed: what the sinks hear, as numbered events, pushed to the page (server-sent events) and asked for by MCP.

Rules that hold here:

- Each event has a sequence number; the last `BACKLOG` are kept, so that a reader who comes back (`Last-Event-ID`) misses nothing
  recent, and is told when it did (`missed`).
- A reader that does not keep up loses events, counted, not the observer its time: its queue is bounded.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Progress, Record
from qm_proxy.store.queries import finding_json, record_json

__all__ = ["BACKLOG", "Live", "LiveEvent"]

BACKLOG = 2000
KEEP_ALIVE_S = 15.0


@dataclass(slots=True)
class LiveEvent:
    seq: int
    name: str  # exchange.opened, exchange.progress, exchange.closed, finding, run
    what: dict[str, Any] | Progress

    @property
    def data(self) -> dict[str, Any]:
        """What is sent. Of a progress it is made when somebody reads: most are read by nobody."""
        return _progress_json(self.what) if isinstance(self.what, Progress) else self.what

    def encode(self) -> bytes:
        body = json.dumps(self.data, separators=(",", ":"), allow_nan=False)
        return f"id: {self.seq}\nevent: {self.name}\ndata: {body}\n\n".encode()


class Live:
    """A sink that numbers, keeps and hands on. Call from the loop's thread only."""

    def __init__(self) -> None:
        self.events: deque[LiveEvent] = deque(maxlen=BACKLOG)
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._readers = 0  # who wait for it
        self._over = False

    # --- as a sink ----------------------------------------------------------------------------------------------------

    def opened(self, opened: Opened) -> None:
        self.publish(
            "exchange.opened",
            {
                "id": opened.id,
                "started_at": opened.started_at,
                "method": opened.method,
                "route": opened.route,
                "dialect": opened.dialect,
                "operation": opened.operation,
                "model": opened.model,
                "client": opened.client,
                "streamed": opened.streamed,
                "origin": opened.origin,
            },
        )

    def progress(self, progress: Progress) -> None:
        self.publish("exchange.progress", progress)

    def found(self, finding: Finding) -> None:
        self.publish("finding", finding_json(finding))

    def closed(self, record: Record) -> None:
        self.publish("exchange.closed", record_json(record))

    def publish(self, name: str, data: dict[str, Any] | Progress) -> None:
        self.events.append(LiveEvent(next(self._numbers), name, data))
        if self._readers:  # else nobody waits
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def close(self) -> None:
        """Nothing more will be told: streams end behind the last event."""
        self._over = True
        self._changed.set()

    # --- for readers --------------------------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        return self.events[-1].seq if self.events else 0

    def after(self, seq: int) -> tuple[list[LiveEvent], int]:
        """(events after `seq`, how many of them are no longer kept)."""
        if seq >= self.last_seq:
            return [], 0
        first = self.events[0].seq
        newer = list(itertools.islice(self.events, max(0, seq - first + 1), None))
        return newer, max(0, first - seq - 1)

    async def wait(self, seq: int, patience_s: float) -> bool:
        """Until there is an event after `seq`, at most `patience_s`; whether there is."""
        if self.last_seq > seq:
            return True
        self._readers += 1
        try:
            await asyncio.wait_for(self._changed.wait(), patience_s)
        except TimeoutError:
            return False
        finally:
            self._readers -= 1
        return True

    async def endpoint(self, request: Request) -> StreamingResponse:
        """`GET /api/v1/events`: from now on, or after `Last-Event-ID` / `?after=`; `?names=finding,run` filters."""
        wanted = {n for n in request.query_params.get("names", "").split(",") if n}
        asked = request.headers.get("last-event-id") or request.query_params.get("after")
        seq = int(asked) if asked is not None and asked.isdigit() else self.last_seq
        if seq > self.last_seq:  # numbered by an observer that is no more: what it told last is unknown, so is what was missed
            return self._response(0, wanted, b'event: missed\ndata: {"events":null}\n\n')
        return self._response(seq, wanted)

    def _response(self, seq: int, wanted: set[str], first: bytes = b"") -> StreamingResponse:
        events = self._stream(seq, wanted, first)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _stream(self, seq: int, wanted: Iterable[str], first: bytes = b"") -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n" + first
        while True:
            events, missed = self.after(seq)
            if missed:
                yield f'event: missed\ndata: {{"events":{missed}}}\n\n'.encode()
            if events:
                seq = events[-1].seq
                block = b"".join(e.encode() for e in events if not wanted or e.name in wanted)
                if block:
                    yield block
            elif self._over:
                return
            elif not await self.wait(seq, KEEP_ALIVE_S):
                yield b": still here\n\n"


def _progress_json(progress: Progress) -> dict[str, Any]:
    return {
        "id": progress.id,
        "phase": progress.phase,
        "chunks": progress.chunks,
        "elapsed_s": round(progress.elapsed_s, 4),
        "ttft_s": progress.ttft_s,
        "tokens_per_s": progress.tokens_per_s,
    }
