"""The feed numbers its events, keeps the last ones, and says what a late reader missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from starlette.requests import Request

from qm_proxy.console.live import BACKLOG, Live


async def test_numbers_and_backlog() -> None:
    live = Live()
    for n in range(3):
        live.publish("run", {"n": n})
    events, missed = live.after(1)
    assert [e.seq for e in events] == [2, 3]
    assert missed == 0
    assert live.after(3) == ([], 0)


async def test_a_late_reader_is_told_what_it_missed() -> None:
    live = Live()
    for n in range(BACKLOG + 5):
        live.publish("run", {"n": n})
    events, missed = live.after(0)
    assert (len(events), missed) == (BACKLOG, 5)
    assert events[0].seq == 6


async def test_waiting_ends_with_the_event() -> None:
    live = Live()
    waiting = asyncio.ensure_future(live.wait(0, 5))
    await asyncio.sleep(0)
    live.publish("run", {})
    assert await waiting
    assert not await live.wait(1, 0)


async def test_stream_frames_and_filters() -> None:
    live = Live()
    live.publish("run", {"a": 1})
    live.publish("finding", {"b": 2})
    stream = live._stream(0, {"finding"})
    assert await anext(stream) == b"retry: 1000\n\n"
    assert await anext(stream) == b'id: 2\nevent: finding\ndata: {"b":2}\n\n'
    await stream.aclose()  # type: ignore[attr-defined]


async def test_at_the_end_a_stream_ends_behind_the_last_event() -> None:
    live = Live()
    stream = live._stream(0, set())
    waiting = asyncio.ensure_future(_all(stream))
    await asyncio.sleep(0)
    live.publish("run", {"a": 1})
    live.close()
    assert await waiting == [b"retry: 1000\n\n", b'id: 1\nevent: run\ndata: {"a":1}\n\n']


async def _all(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [block async for block in stream]


async def test_a_reader_of_another_life_is_told_and_given_everything() -> None:
    live = Live()
    live.publish("run", {"a": 1})
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"last-event-id", b"900")]}
    answer = await live.endpoint(Request(scope))
    blocks = [block async for block in _first(answer.body_iterator, 2)]
    assert b"event: missed" in blocks[0]
    assert b'data: {"a":1}' in blocks[1]


async def _first(source: AsyncIterable[Any], n: int) -> AsyncIterator[bytes]:
    async for block in source:
        yield block
        n -= 1
        if not n:
            return
