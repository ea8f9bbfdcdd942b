"""Tells subscribers that a resource has changed, in both eras of the protocol.

Rules that hold here:

- 2026-07-28: `subscriptions/listen`, served by the SDK from a bus. 2025-11-25: `resources/subscribe` on a session, whose
  notifications go over its standing stream; a session without one (stateless) is told nothing.
- A change is told once per `QUIET_S`, however often it happened: what is sent says "read it again", not what it says now.
- Without subscribers the event feed is not read: nothing is spent on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated, ServerEvent
from mcp.types import INVALID_PARAMS, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from probes.jobs import ENDED
from probes.mcp_tools.feed import Feed
from qm_proxy.tasks import spawn

__all__ = ["Updates", "changed_by"]

QUIET_S = 0.5
STORED_S = 1.0  # until what closed can be read from the store
URIS_MAX = 64  # per session
_PREFIXES = ("qm://status", "qm://sessions/", "qm://traces/", "qm://runs/", "qm://reports/")


def changed_by(name: str, data: Mapping[str, Any]) -> list[str]:
    """The resources that an event of the live feed changes."""
    if name == "run":
        return [f"qm://runs/{data['id']}", *([f"qm://reports/{data['id']}"] if data["state"] in ENDED else [])]
    session = [f"qm://sessions/{data['session_id']}"] if data.get("session_id") else []
    if name == "exchange.opened":
        return ["qm://status", f"qm://traces/{data['id']}"]
    if name == "exchange.closed":
        return ["qm://status", f"qm://traces/{data['id']}", *session]
    if name == "finding":
        return [*([f"qm://traces/{data['exchange_id']}"] if data.get("exchange_id") else []), *session]
    return []


class _Bus(InMemorySubscriptionBus):
    """The SDK's bus, which also says that somebody listens."""

    def __init__(self, heard: Callable[[], None]) -> None:
        super().__init__()
        self._heard = heard

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        self._heard()
        return super().subscribe(listener)

    @property
    def listened(self) -> bool:
        return bool(self._listeners)


class Updates:
    """Who subscribed, and what has changed since they were last told. Use from one event loop."""

    def __init__(self) -> None:
        self._someone = asyncio.Event()
        self.bus = _Bus(self._someone.set)
        self._sessions: WeakKeyDictionary[Connection, set[str]] = WeakKeyDictionary()  # a session that ends takes its own along
        self._changed: dict[str, None] = {}
        self._telling: asyncio.Task[None] | None = None

    def register(self, mcp: MCPServer) -> None:
        """Serve `resources/subscribe` and `resources/unsubscribe` of the older era."""
        # MCPServer has no public way for these two methods
        server = mcp._lowlevel_server
        server.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)

    async def _subscribe(self, ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams) -> EmptyResult:
        uri = str(params.uri)
        if not uri.startswith(_PREFIXES):
            raise MCPError(INVALID_PARAMS, f"There is no resource {uri!r}; there are {', '.join(_PREFIXES)}…", {"uri": uri})
        uris = self._sessions.setdefault(ctx.session._connection, set())
        if uri not in uris and len(uris) >= URIS_MAX:
            raise MCPError(INVALID_PARAMS, f"{URIS_MAX} resources are subscribed to already: unsubscribe from one first.")
        uris.add(uri)
        self._someone.set()
        return EmptyResult()

    async def _unsubscribe(self, ctx: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams) -> EmptyResult:
        self._sessions.get(ctx.session._connection, set()).discard(str(params.uri))
        return EmptyResult()

    # --- changes ------------------------------------------------------------------------------------------------------

    def changed(self, uris: Iterable[str], after_s: float = 0.0) -> None:
        """Tell their subscribers, within `QUIET_S` at the latest, not before `after_s`."""
        if after_s:
            found = list(uris)
            asyncio.get_running_loop().call_later(after_s, lambda: self.changed(found))
            return
        self._changed.update(dict.fromkeys(uris))
        if self._changed and (self._telling is None or self._telling.done()):
            self._telling = spawn(self._tell(), name="resource updates")

    async def _tell(self) -> None:
        while self._changed:
            changed, self._changed = self._changed, {}
            for uri in changed:
                await self.bus.publish(ResourceUpdated(uri=uri))
                for connection, uris in list(self._sessions.items()):
                    if uri in uris:
                        await connection.notify("notifications/resources/updated", {"uri": uri})
            await asyncio.sleep(QUIET_S)

    @contextlib.asynccontextmanager
    async def following(self, feed: Feed) -> AsyncIterator[None]:
        """While entered, the feed's events are told as changes of resources."""
        task = spawn(self._follow(feed), name="resource changes")
        try:
            yield
        finally:
            task.cancel()
            if self._telling is not None:
                self._telling.cancel()

    async def _follow(self, feed: Feed) -> None:
        while True:
            await self._someone.wait()
            seq = feed.last()
            while self.bus.listened or any(self._sessions.values()):
                await feed.wait(seq, 60.0)
                events, _ = feed.after(seq)
                for event in events:
                    seq = event.seq
                    late = event.name == "exchange.closed"
                    self.changed(changed_by(event.name, event.data), STORED_S if late else 0.0)
                await asyncio.sleep(QUIET_S)
            self._someone.clear()
