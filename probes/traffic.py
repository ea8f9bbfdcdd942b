"""Does other traffic run through a proxy to the upstream that is about to be measured? Its console knows.

A measurement beside somebody's streams measures the queue. No console, or one of another upstream, is no objection.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, urlsplit

from probes.ask import Ask
from probes.client import Client

__all__ = ["Traffic", "in_flight", "same_place"]

CONSOLE = "http://127.0.0.1:11437"
_MOST = 500


class Traffic:
    """What other clients do through the proxy of one console. `console`: its URL; None: as $QM_CONSOLE says, or serve's own."""

    def __init__(self, upstream: str, console: str | None = None) -> None:
        said = console or os.environ.get("QM_CONSOLE") or CONSOLE
        self.upstream = upstream
        self.console = None if said == "off" else said

    async def now(self) -> int | None:
        """Requests in flight; `None` when that cannot be known."""
        return await in_flight(self.upstream, self.console) if self.console is not None else None

    async def since(self, instant: str) -> int | None:
        """Generations that other clients began since that ISO instant, or still run; 500 is all that is counted."""
        if self.console is None or (running := await in_flight(self.upstream, self.console)) is None:
            return None
        ask = Ask("exchanges", f"/api/v1/exchanges?limit={_MOST}&since={quote(instant)}", method="GET", limit_s=5.0)
        answer = await Client(self.console, "traffic", connect_s=0.5).ask(ask)
        items = answer.document.get("items") if answer.ok and isinstance(answer.document, dict) else None
        return running + sum(_generates(item) for item in items or [])


def _generates(item: Any) -> bool:
    return isinstance(item, dict) and item.get("origin") != "probe" and bool(item.get("operation"))


async def in_flight(upstream: str, console: str = CONSOLE) -> int | None:
    """Requests now in flight through the proxy of that console to this upstream; `None` when that cannot be known."""
    answer = await Client(console, "traffic", connect_s=0.5).ask(Ask("status", "/api/v1/status", method="GET", limit_s=2.0))
    status = answer.document if answer.ok and isinstance(answer.document, dict) else None
    if status is None or not any(same_place(str(status.get(name, "")), upstream) for name in ("upstream", "proxy")):
        return None
    sessions = status.get("sessions")
    found = status.get("in_flight", sessions.get("in_flight") if isinstance(sessions, dict) else None)
    return found if isinstance(found, int) else None


def same_place(one: str, other: str) -> bool:
    """Do two addresses name one server, as far as their words say?"""
    return _place(one) == _place(other)


def _place(address: str) -> tuple[str, int]:
    """Host and port; the names of this machine are one."""
    parts = urlsplit(address if "//" in address else f"http://{address}:11434" if ":" not in address else f"http://{address}")
    host = (parts.hostname or "").lower()
    return "127.0.0.1" if host in ("localhost", "0.0.0.0", "::1", "::") else host, parts.port or 80
