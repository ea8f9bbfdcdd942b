"""The ring in memory and the database as one: what is in flight or was closed just now, and everything before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qm_proxy.errors import StoreError
from qm_proxy.store.queries import Json, Ring
from qm_proxy.store.sqlite import Stored

__all__ = ["Both"]


class Both:
    """Queries. A page is cut from both sides' pages: each is newest first and starts behind the same cursor, so that the first
    `limit` of their union are the first `limit` of everything. While the database cannot be read, the ring answers alone."""

    def __init__(self, ring: Ring, stored: Stored) -> None:
        self.ring = ring
        self.stored = stored

    def status(self) -> Json:
        ring = self.ring.status()
        stored = self._else(self.stored.status, {})
        return (
            ring
            if not stored
            else stored | {"in_flight": ring["in_flight"], "exchanges": max(stored["exchanges"], ring["exchanges"])}
        )

    def exchanges(self, **asked: Any) -> Json:
        return self._union(self.ring.exchanges(**asked), lambda: self.stored.exchanges(**asked), asked.get("limit", 50))

    def exchange(self, exchange_id: str) -> Json | None:
        stored: Json | None = self._else(lambda: self.stored.exchange(exchange_id), None)
        return stored if stored is not None else self.ring.exchange(exchange_id)

    def chunks(self, exchange_id: str) -> Json | None:
        kept = self.ring.chunks(exchange_id)
        return kept if kept is not None else self._else(lambda: self.stored.chunks(exchange_id), None)

    def findings(self, **asked: Any) -> Json:
        return self._union(self.ring.findings(**asked), lambda: self.stored.findings(**asked), asked.get("limit", 50))

    def sessions(self, **asked: Any) -> Json:
        return self._page_else(lambda: self.stored.sessions(**asked))

    def session(self, session_id: str, **asked: Any) -> Json | None:
        found: Json | None = self._else(lambda: self.stored.session(session_id, **asked), None)
        return found

    def runs(self, **asked: Any) -> Json:
        return self._page_else(lambda: self.stored.runs(**asked))

    def run(self, run_id: str) -> Json | None:
        found: Json | None = self._else(lambda: self.stored.run(run_id), None)
        return found

    def _page_else(self, ask: Callable[[], Json]) -> Json:
        page: Json = self._else(ask, {"items": [], "next_cursor": None})
        return page

    def _union(self, ring: Json, ask: Callable[[], Json], limit: int) -> Json:
        stored: Json = self._else(ask, {"items": [], "next_cursor": None})
        by_id = {item["id"]: item for item in ring["items"]} | {item["id"]: item for item in stored["items"]}
        ids = sorted(by_id, reverse=True)
        more = len(ids) > limit or ring["next_cursor"] is not None or stored["next_cursor"] is not None
        items = [by_id[identifier] for identifier in ids[:limit]]
        return {"items": items, "next_cursor": items[-1]["id"] if more and items else None}

    @staticmethod
    def _else(ask: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return ask()
        except StoreError:
            return otherwise
