"""Changed resources are told to who subscribed, in both eras; and to nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import ResourceUpdatedNotification

from probes.mcp_server import build
from probes.mcp_tools import updates as module
from probes.mcp_tools.feed import Feed
from probes.mcp_tools.updates import URIS_MAX, Updates, changed_by
from qm_proxy.console.live import Live
from qm_proxy.store.both import Both
from qm_proxy.store.queries import Ring
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.writer import Writer

pytestmark = pytest.mark.filterwarnings("ignore:resources/.*subscribe is removed")


class Rig:
    """The server in memory, over an empty store and a live feed."""

    def __init__(self, updates: Updates) -> None:
        self.live = Live()
        self.updates = updates
        self.feed = Feed(self.live.after, self.live.wait, lambda: self.live.last_seq)
        self.server = build(
            Both(Ring(), Stored(Writer(None).place)), lambda: {"name": "qm-proxy"}, self.feed, None, version="0", updates=updates
        )
        self.heard: asyncio.Queue[str] = asyncio.Queue()

    async def hear(self, message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            self.heard.put_nowait(str(message.params.uri))

    async def next(self) -> str:
        return await asyncio.wait_for(self.heard.get(), 20)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(module, "QUIET_S", 0.01)
    monkeypatch.setattr(module, "STORED_S", 0.02)
    made = Rig(Updates())
    async with made.updates.following(made.feed):
        yield made


def test_what_an_event_changes() -> None:
    assert changed_by("run", {"id": "r", "state": "running"}) == ["qm://runs/r"]
    assert changed_by("run", {"id": "r", "state": "done"}) == ["qm://runs/r", "qm://reports/r"]
    assert changed_by("exchange.opened", {"id": "x"}) == ["qm://status", "qm://traces/x"]
    assert changed_by("exchange.closed", {"id": "x", "session_id": "s"}) == ["qm://status", "qm://traces/x", "qm://sessions/s"]
    assert changed_by("finding", {"id": "f", "exchange_id": "x", "session_id": None}) == ["qm://traces/x"]
    assert changed_by("exchange.progress", {"id": "x"}) == []


async def test_the_older_era_is_told_on_its_session(rig: Rig) -> None:
    async with Client(rig.server, mode="legacy", message_handler=rig.hear) as client:
        assert client.server_capabilities.resources is not None
        assert client.server_capabilities.resources.subscribe is True
        await client.subscribe_resource("qm://runs/a")
        await client.subscribe_resource("qm://sessions/s")
        rig.live.publish("run", {"id": "other", "state": "running"})
        rig.live.publish("run", {"id": "a", "state": "running"})
        assert await rig.next() == "qm://runs/a"
        rig.live.publish("exchange.closed", {"id": "x", "session_id": "s"})
        assert await rig.next() == "qm://sessions/s"
        await client.unsubscribe_resource("qm://runs/a")
        rig.live.publish("run", {"id": "a", "state": "done"})
        rig.live.publish("exchange.closed", {"id": "y", "session_id": "s"})
        assert await rig.next() == "qm://sessions/s", "what is unsubscribed from is told no more"
        assert rig.heard.empty()


async def test_the_newer_era_listens(rig: Rig) -> None:
    async with (
        Client(rig.server, mode="auto") as client,
        client.listen(resource_subscriptions=["qm://runs/a", "qm://reports/a", "qm://status"]) as heard,
    ):
        assert set(heard.honored.resource_subscriptions or ()) == {"qm://runs/a", "qm://reports/a", "qm://status"}
        rig.live.publish("run", {"id": "b", "state": "done"})
        rig.live.publish("run", {"id": "a", "state": "done"})
        told = {(await asyncio.wait_for(anext(heard), 20)).uri for _ in range(2)}  # type: ignore[union-attr]
        assert told == {"qm://runs/a", "qm://reports/a"}
        rig.live.publish("exchange.opened", {"id": "x"})
        assert (await asyncio.wait_for(anext(heard), 20)).uri == "qm://status"  # type: ignore[union-attr]


async def test_a_burst_is_told_once_or_twice(rig: Rig) -> None:
    async with Client(rig.server, mode="legacy", message_handler=rig.hear) as client:
        await client.subscribe_resource("qm://runs/a")
        await client.subscribe_resource("qm://runs/last")
        for _ in range(500):
            rig.live.publish("run", {"id": "a", "state": "running"})
        rig.live.publish("run", {"id": "last", "state": "running"})
        heard = [await rig.next()]
        while heard[-1] != "qm://runs/last":
            heard.append(await rig.next())
        assert 1 <= heard.count("qm://runs/a") <= 2


async def test_strange_subscriptions_are_refused(rig: Rig) -> None:
    async with Client(rig.server, mode="legacy") as client:
        with pytest.raises(MCPError, match="qm://runs/"):
            await client.subscribe_resource("file:///etc/passwd")
        for n in range(URIS_MAX):
            await client.subscribe_resource(f"qm://runs/{n}")
        with pytest.raises(MCPError, match="unsubscribe"):
            await client.subscribe_resource("qm://runs/one-more")
        await client.subscribe_resource("qm://runs/0")  # again is no more


async def test_a_session_that_ends_takes_its_subscriptions_along(rig: Rig) -> None:
    import gc

    async with Client(rig.server, mode="legacy") as client:
        await client.subscribe_resource("qm://status")
        assert len(rig.updates._sessions) == 1
    del client
    for _ in range(100):
        gc.collect()
        if not len(rig.updates._sessions):
            break
        await asyncio.sleep(0)
    assert len(rig.updates._sessions) == 0
    rig.live.publish("exchange.opened", {"id": "x"})  # and nobody is told


async def test_without_subscribers_the_feed_is_not_read(rig: Rig) -> None:
    asked: list[int] = []
    waiting = rig.feed.wait

    def wait(seq: int, patience_s: float) -> Any:
        asked.append(seq)
        return waiting(seq, patience_s)

    rig.feed.wait = wait
    rig.live.publish("run", {"id": "a", "state": "running"})
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked == []
