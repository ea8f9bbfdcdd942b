"""What is old, or too much, goes; its space goes back to the system. In small steps between the writer's batches.

Rules that hold here:

- A step deletes at most `STEP` exchanges in one transaction, so that nothing waits for it longer than for a batch.
- Age is the id's own time (UUIDv7). Beyond the size, the oldest exchanges go, whoever's they are. Runs of probes stay.
- The size is that of the pages in use: free pages are given back by incremental vacuum, never by rewriting the file.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

__all__ = ["Retention", "Sizes", "floor_id", "sizes"]

STEP = 250
_GIVE_BACK_PAGES = 512  # in one step: 2 MiB
_KEEP_FREE = 0.02  # free pages that are left for the next rows


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the database file (without its log), and how many of them are in use."""

    file: int
    used: int
    page: int


def sizes(connection: sqlite3.Connection) -> Sizes:
    page, pages, free = (
        connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return Sizes(page * pages, page * (pages - free), page)


def floor_id(unix_s: float) -> str:
    """The smallest UUIDv7 of that time: ids below it are older."""
    digits = f"{max(0, int(unix_s * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:12]}-7000-8000-000000000000"


class Retention:
    """`keep_s` and `keep_bytes`; None: without limit. `step` answers whether there is more to do at once."""

    def __init__(self, keep_s: float | None, keep_bytes: int | None) -> None:
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self.deleted = 0
        self.given_back_bytes = 0

    def step(self, connection: sqlite3.Connection, now_unix_s: float) -> bool:
        gone = 0
        if self._keep_s is not None:
            gone = self._delete(connection, floor_id(now_unix_s - self._keep_s), STEP)
        if not gone and self._keep_bytes is not None and (size := sizes(connection)).used > self._keep_bytes:
            gone = self._delete(connection, None, self._share(connection, size))
        return self._give_back(connection) or gone >= STEP or (gone > 0 and self._too_much(connection))

    def _too_much(self, connection: sqlite3.Connection) -> bool:
        return self._keep_bytes is not None and sizes(connection).used > self._keep_bytes

    def _share(self, connection: sqlite3.Connection, size: Sizes) -> int:
        """How many of the oldest exchanges hold what is too much, and a twentieth more, so as not to come back at once."""
        n: int = connection.execute("select count(*) from exchanges").fetchone()[0]
        assert self._keep_bytes is not None
        return max(1, min(STEP, round(n * (size.used - 0.95 * self._keep_bytes) / size.used)))

    def _delete(self, connection: sqlite3.Connection, before: str | None, limit: int) -> int:
        where, values = ("", ()) if before is None else ("where id < ?", (before,))
        chosen = f"select rowid from exchanges {where} order by id limit {limit}"
        connection.execute("begin immediate")
        try:
            last = connection.execute(f"select max(id) from exchanges where rowid in ({chosen})", values).fetchone()[0]
            if last is None:
                connection.execute("rollback")
                return 0
            touched = f"select distinct session_id from exchanges where rowid in ({chosen}) and session_id is not null"
            sessions = [row[0] for row in connection.execute(touched, values)]
            gone: int = connection.execute(f"delete from exchanges where rowid in ({chosen})", values).rowcount
            connection.execute("delete from findings where exchange_id is null and id < ?", (last,))
            connection.executemany(
                "delete from sessions where id = ? and not exists (select 1 from exchanges where session_id = sessions.id)",
                [(session,) for session in sessions],
            )
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise
        self.deleted += gone
        return gone

    def _give_back(self, connection: sqlite3.Connection) -> bool:
        before = sizes(connection)
        spare = (before.file - before.used) // before.page - max(_GIVE_BACK_PAGES, round(_KEEP_FREE * before.file / before.page))
        if spare <= 0:
            return False
        connection.execute(f"pragma incremental_vacuum({min(spare, _GIVE_BACK_PAGES)})").fetchall()
        after = sizes(connection)
        self.given_back_bytes += before.file - after.file
        return after.file < before.file and spare > _GIVE_BACK_PAGES
