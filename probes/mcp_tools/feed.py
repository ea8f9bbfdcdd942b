"""The live trace for MCP: numbered events after a number, waited for; by polling, because that works in every client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.types import CallToolResult
from pydantic import Field

from probes.mcp_tools.answers import DATA_MAX, READ, TEXT_MAX, UNTRUSTED, Rows, Wait, answer, line
from probes.mcp_tools.seen import brief

__all__ = ["Feed", "register"]


class Feed:
    """What get_trace reads: the console's numbered events. Filled by wiring with the live feed's functions."""

    def __init__(
        self, after: Callable[[int], tuple[list[Any], int]], wait: Callable[[int, float], Any], last: Callable[[], int]
    ) -> None:
        self.after = after
        self.wait = wait
        self.last = last


def register(mcp: MCPServer, feed: Feed) -> None:
    """Add `get_trace` to the server."""

    @mcp.tool(annotations=READ)
    async def get_trace(
        after_seq: Annotated[int | None, Field(ge=0, description="Left out: from now on")] = None,
        wait_s: Wait = 0,
        limit: Annotated[int, Field(ge=1, le=200)] = 50,
        session_id: str | None = None,
    ) -> Annotated[CallToolResult, Rows]:
        """The live trace: events after a number (requests, findings, runs); waits up to `wait_s` for the next."""
        seq = feed.last() if after_seq is None else after_seq
        if seq > feed.last():  # a number of an earlier observer: it was restarted, and counts from 1
            seq = 0
        events, missed = feed.after(seq)
        if not events and wait_s:
            await feed.wait(seq, wait_s)
            events, missed = feed.after(seq)
        items: list[dict[str, Any]] = []
        lines: list[str] = []
        after, room = seq, TEXT_MAX - 600
        for event in events:
            if event.name != "exchange.progress" and session_id in (None, event.data.get("session_id")):
                item = {"seq": event.seq, "event": event.name, "data": brief(event.data)}
                words = line(f"{event.seq} {event.name} {json.dumps(item['data'], ensure_ascii=False)}", 200)
                room -= len(words) + 1
                if items and (room < 0 or len(items) >= limit or len(json.dumps([*items, item])) > DATA_MAX):
                    break
                items.append(item)
                lines.append(words)
            after = event.seq
        left = f", {feed.last() - after} newer numbers to read" if events and after < events[-1].seq else ""
        summary = f"{len(items)} events, next_seq {after}{left}"
        summary += f", {missed} older ones are no longer kept" if missed else ""
        wait = 0 if left else 20
        rows = Rows(summary=summary, items=items, next_cursor=str(after), note=UNTRUSTED if items else None)
        return answer(rows, summary, lines, f"Next: get_trace(after_seq={after}, wait_s={wait}).")
