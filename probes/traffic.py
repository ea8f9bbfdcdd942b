"""Does other traffic run through a proxy to the upstream that is about to be measured? Its console knows.

A measurement beside somebody's streams measures the queue. No console, or one of another upstream, is no objection.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from probes.ask import Ask
from probes.client import Client

__all__ = ["in_flight", "same_place"]

CONSOLE = "http://127.0.0.1:11437"


async def in_flight(upstream: str, console: str = CONSOLE) -> int | None:
    """Requests now in flight through the proxy of that console to this upstream; `None` when that cannot be known."""
    answer = await Client(console, "traffic", connect_s=0.5).ask(Ask("status", "/api/v1/status", method="GET", limit_s=2.0))
    status = answer.document if answer.ok and isinstance(answer.document, dict) else None
    if status is None or not same_place(str(status.get("upstream", "")), upstream):
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
