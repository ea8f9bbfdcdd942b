"""Several machines' databases → one. Ids are unique everywhere: rows are brought together, and doing it twice adds nothing.

Rules that hold here:

- A source is never written. One of an older version is brought up to date in a copy.
- All of a source comes in one transaction, parents before children; a merge that is killed leaves what was there before.
- Every source is looked at before anything is written: one that cannot be read refuses the whole merge.
- Where both sides know a row, the later state wins (a session that went on, a run that ended, an exchange that closed).
"""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from qm_proxy.errors import StoreError
from qm_proxy.store.database import failure_of, newer_step, open_for_reading, open_for_writing
from qm_proxy.store.migrations import STEPS, migrate

__all__ = ["check", "merge"]

# table → key, and when the source's row replaces ours ("": never)
_TABLES: tuple[tuple[str, str, str], ...] = (
    ("machines", "id", "excluded.last_seen > machines.last_seen"),
    ("models", "name", "excluded.last_seen > models.last_seen"),
    ("sessions", "id", "(excluded.last_at, excluded.exchanges) > (sessions.last_at, sessions.exchanges)"),
    ("session_models", "session_id, model", "excluded.exchanges > session_models.exchanges"),
    ("exchanges", "id", "exchanges.ending is null and excluded.ending is not null"),
    ("turns", "exchange_id", ""),
    ("chunks", "exchange_id", ""),
    ("tool_calls", "exchange_id, position", "tool_calls.turnaround_s is null and excluded.turnaround_s is not null"),
    ("findings", "id", ""),
    ("contents", "exchange_id", ""),
    ("runs", "id", "runs.ended_at is null and excluded.ended_at is not null"),
)


def check(source: Path) -> None:
    """Raises `StoreError` when this cannot be merged: missing, another program's, of a newer version, damaged."""
    connection = open_for_reading(source)
    try:
        newer = newer_step(connection)
        connection.execute("select count(*) from machines").fetchone()
    except sqlite3.Error as exc:
        failure = failure_of(exc)
        raise StoreError(f"{source} cannot be read: {failure.message}", remedy=failure.remedy) from exc
    finally:
        connection.close()
    if newer is not None:
        raise StoreError(
            f"{source} was written by a newer qm-proxy: it has the step {newer!r}, which this version does not know.",
            remedy="Upgrade qm-proxy here.",
            step=newer,
        )


def merge(into: Path, sources: list[Path]) -> dict[str, int]:
    """Bring everything of `sources` into `into` (made if need be); answers with the number of rows that came or changed, by
    table. Raises `StoreError`: a source is missing, is none of ours, or of a newer version; the target cannot be written."""
    added = {table: 0 for table, _, _ in _TABLES}
    for source in sources:
        check(source)
    try:
        target, _ = open_for_writing(into, busy_ms=10_000)
    except (StoreError, sqlite3.Error, OSError) as exc:
        failure = failure_of(exc)
        message = failure.message if str(into) in failure.message else f"{into}: {failure.message}"
        raise StoreError(message, remedy=failure.remedy) from exc
    try:
        for source in sources:
            if source.exists() and source.samefile(into):
                continue
            with tempfile.TemporaryDirectory() as directory:
                ready = _ready(source, Path(directory))
                try:
                    for table, n in _merge_one(target, ready).items():
                        added[table] += n
                except sqlite3.Error as exc:
                    failure = failure_of(exc)
                    raise StoreError(f"{source} could not be merged: {failure.message}", remedy=failure.remedy) from exc
    finally:
        target.close()
    return added


def _ready(source: Path, directory: Path) -> Path:
    """The source itself when it has this version's schema, else an upgraded copy."""
    connection = open_for_reading(source)
    try:
        applied = connection.execute("select count(*) from _sqlite_migrations where migration_set = 'qm_proxy'").fetchone()[0]
        if applied == len(STEPS):
            return source
        copy = directory / "source.db"
        upgraded = sqlite3.connect(copy, isolation_level=None)
        try:
            connection.backup(upgraded)
            migrate(upgraded)
        finally:
            upgraded.close()
        return copy
    except sqlite3.Error as exc:
        failure = failure_of(exc)
        raise StoreError(f"{source}: {failure.message}", remedy=failure.remedy) from exc
    finally:
        connection.close()


def _merge_one(target: sqlite3.Connection, source: Path) -> dict[str, int]:
    target.execute("attach database ? as source", (str(source),))
    try:
        target.execute("begin immediate")
        try:
            added = {table: _copy(target, table, key, newer) for table, key, newer in _TABLES}
            target.execute("commit")
        except BaseException:
            if target.in_transaction:
                target.execute("rollback")
            raise
    finally:
        target.execute("detach database source")
    return added


def _copy(target: sqlite3.Connection, table: str, key: str, newer: str) -> int:
    columns = [row[1] for row in target.execute(f"pragma main.table_info({table})")]
    names = ", ".join(columns)
    conflict = "nothing"
    if newer:
        changed = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key.split(", "))
        conflict = f"update set {changed} where {newer}"
    # "where true" tells SQLite's parser that ON belongs to the INSERT
    sql = f"insert into main.{table} ({names}) select {names} from source.{table} where true on conflict({key}) do {conflict}"
    return max(0, target.execute(sql).rowcount)
