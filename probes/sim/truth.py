"""What the simulated server really did, and when: the reference that every measurement is held against.

Times are monotonic nanoseconds of this machine (the same clock as the proxy's), taken at the call that gives the bytes to
the socket. Planned times stand beside them: what the persona's law wanted. Bounded: the oldest requests are forgotten.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

__all__ = ["RequestTruth", "Truth"]

KEPT = 20_000
"""Requests remembered in memory."""


@dataclass(slots=True)
class RequestTruth:
    """One request. Counts and times that do not apply are None."""

    n: int  # order of arrival, from 0
    connection: int
    method: str
    path: str
    received_ns: int  # its head was complete
    label: str | None = None  # the request header X-Sim-Label, if a test sent one
    user_agent: str | None = None
    dialect: str | None = None
    model: str | None = None
    persona: str | None = None
    streamed: bool | None = None
    status: int | None = None
    phase: str = "received"  # then loading, queued, prefill, decode: where it is, or was when it ended
    ending: str | None = None  # complete, refused, load, unload, client_left, crash, cut, no_done, repeat, silent, hung
    finish: str | None = None  # stop, length
    note: str = ""  # policy, planted fault, "found"/"missed" of the Audit
    reload: str | None = None  # which launch option forced a reload
    evicted: str | None = None
    load_ns: int | None = None
    queue_ns: int | None = None  # waited for a slot
    prefill_ns: int | None = None
    first_touch: bool = False
    decode_ns: int | None = None
    total_ns: int | None = None
    asked_tokens: int | None = None  # of the whole prompt
    prompt_tokens: int | None = None  # evaluated or cached, after any cut
    cached_tokens: int | None = None
    dropped_messages: int = 0
    window_tokens: int | None = None
    shifts: int = 0
    sampled_tokens: int = 0  # with the end-of-sequence token where the runner counts it
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    stalls: list[tuple[int, int]] = field(default_factory=list)  # token index, ns
    network_stalls: list[tuple[int, int]] = field(default_factory=list)  # token index from which nothing left, ns
    leaked_slot: bool = False
    client_left_ns: int | None = None  # when the client's leaving was noticed
    ended_ns: int | None = None
    planned_ns: array[int] = field(default_factory=lambda: array("q"))  # per sampled token
    written_ns: array[int] = field(default_factory=lambda: array("q"))  # per write that carried records
    written_tokens: array[int] = field(default_factory=lambda: array("q"))  # tokens sampled when that write was made
    written_records: array[int] = field(default_factory=lambda: array("q"))  # records in that write
    kinds: list[str] = field(default_factory=list)  # per record: text, thinking, tool, empty, done, error
    text: str = ""  # what was sent, joined
    thinking: str = ""

    def wrote(self, t_ns: int, records: int, tokens: int) -> None:
        self.written_ns.append(t_ns)
        self.written_records.append(records)
        self.written_tokens.append(tokens)

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            found[name] = value.tolist() if isinstance(value, array) else value
        return found


class Truth:
    """All requests, newest last. `file`: each request is appended to it as one JSON line when it ends."""

    def __init__(self, file: Path | None = None) -> None:
        self.requests: deque[RequestTruth] = deque(maxlen=KEPT)
        self._file: TextIO | None = file.open("a", encoding="utf-8", errors="replace", buffering=1) if file is not None else None
        self._count = 0
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def opened(self, connection: int, method: str, path: str, received_ns: int) -> RequestTruth:
        request = RequestTruth(self._count, connection, method, path, received_ns)
        self._count += 1
        self.requests.append(request)
        self.changed()
        return request

    def closed(self, request: RequestTruth, t_ns: int) -> None:
        if request.ended_ns is not None:
            return
        request.ended_ns = t_ns
        self.changed()
        if self._file is not None:
            self._file.write(json.dumps(request.as_dict(), ensure_ascii=False) + "\n")

    def changed(self) -> None:
        """Something happened that `when` may wait for: a request came, queued, wrote its first byte, ended; a runner left."""
        if self._waiting:
            for condition, waiter in list(self._waiting):
                if not waiter.done() and condition():
                    waiter.set_result(None)

    async def when(self, condition: Callable[[], bool]) -> None:
        """Wait until this is true of the log or the server. Judged at each `changed`."""
        if condition():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (condition, waiter)
        self._waiting.append(entry)
        try:
            await waiter
        finally:
            self._waiting.remove(entry)

    async def ended(self, n: int) -> RequestTruth:
        """Wait for the end of request `n` (order of arrival), which may not even have come yet."""
        await self.when(lambda: self._count > n and self[n].ended_ns is not None)
        return self[n]

    def __getitem__(self, n: int) -> RequestTruth:
        """By order of arrival; negative from the newest. Raises IndexError when it is forgotten or was never there."""
        wanted = self._count + n if n < 0 else n
        first = self._count - len(self.requests)
        if not first <= wanted < self._count:
            raise IndexError(f"request {wanted} is not in the truth log, which holds {first} to {self._count - 1}")
        return self.requests[wanted - first]

    def __len__(self) -> int:
        return self._count

    def labelled(self, label: str) -> list[RequestTruth]:
        return [r for r in self.requests if r.label == label]

    def generations(self) -> list[RequestTruth]:
        """The requests that asked a model for tokens."""
        return [r for r in self.requests if r.persona is not None and r.ending not in ("load", "unload")]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
