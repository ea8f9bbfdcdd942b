"""The file: made, opened, recognised, and what its failures mean. The only place that opens a connection.

Rules that hold here:

- The database and its key are readable by their owner alone (0600). SQLite gives its -wal and -shm files the same mode.
- WAL with `synchronous=normal`: a killed process loses nothing that was committed, a power cut at most the last commits; the
  file is never torn. `auto_vacuum=incremental` must be set before the first table: it lets space be given back in small steps.
- The key lies beside the database, not in it: whoever is given the database alone cannot try words against its hashes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import secrets
import sqlite3
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from qm_proxy import __version__
from qm_proxy.errors import StoreError
from qm_proxy.measure.wall_clock import iso
from qm_proxy.store.functions import register
from qm_proxy.store.migrations import APPLICATION_ID, STEPS, migrate
from qm_proxy.store.views import renew

__all__ = [
    "Failure",
    "Place",
    "State",
    "failure_of",
    "in_memory",
    "newer_step",
    "open_for_reading",
    "open_for_writing",
    "secret_key",
]

Place: TypeAlias = Path | str
"""A file, or the name of a database in this process's memory (`in_memory`)."""

KEY_BYTES = 32
State = Literal["ok", "full", "read_only", "locked", "unavailable", "corrupt", "foreign", "failing"]

_MEANING: dict[int, tuple[State, str, str]] = {
    sqlite3.SQLITE_FULL: ("full", "The disk is full.", "Free some space; what is queued is then written."),
    sqlite3.SQLITE_READONLY: ("read_only", "The database is read-only.", "Make the file and its directory writable."),
    sqlite3.SQLITE_PERM: ("read_only", "The database must not be written.", "Make the file and its directory writable."),
    sqlite3.SQLITE_BUSY: ("locked", "Another program has locked the database.", "Let it finish, or close it."),
    sqlite3.SQLITE_LOCKED: ("locked", "Another program has locked the database.", "Let it finish, or close it."),
    sqlite3.SQLITE_CANTOPEN: (
        "unavailable",
        "The database cannot be opened.",
        "Check that its directory exists and is writable.",
    ),
    sqlite3.SQLITE_IOERR: ("unavailable", "The disk does not take what is written.", "Check the disk and its free space."),
    sqlite3.SQLITE_CORRUPT: ("corrupt", "The database is damaged.", "Move it away; a new one is made at once."),
    sqlite3.SQLITE_NOTADB: ("corrupt", "The file is not a database.", "Move it away, or name another file with --db."),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the store cannot be written. `lasting`: the connection is of no use any more."""

    state: State
    message: str
    remedy: str
    lasting: bool


def failure_of(exc: Exception) -> Failure:
    """What an exception of SQLite's or the system's means, in words for a user."""
    if isinstance(exc, StoreError):
        return Failure("foreign", exc.message, exc.remedy or "", True)
    if isinstance(exc, OSError):
        state: State = "unavailable"
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            state = "full"
        elif exc.errno == errno.EROFS:
            state = "read_only"
        return Failure(state, f"The database cannot be opened: {exc.strerror or exc}.", "Check its directory and the disk.", True)
    if not isinstance(exc, sqlite3.Error):
        return Failure("failing", f"The store failed: {type(exc).__name__}: {exc}"[:300], "Please report this.", True)
    code = getattr(exc, "sqlite_errorcode", None)
    state, message, remedy = _MEANING.get((code or 0) & 0xFF, ("failing", "The database cannot be written.", "See the cause."))
    return Failure(state, f"{message} ({exc})", remedy, state not in ("full", "locked"))


def in_memory() -> str:
    """A new database that lives in this process's memory as long as a connection to it is open."""
    return f"file:/qm-{secrets.token_hex(8)}?vfs=memdb"


def open_for_writing(place: Place, *, busy_ms: int = 250) -> tuple[sqlite3.Connection, str]:
    """A connection that may write, and the id of this machine in it. Makes and upgrades the database.

    Raises `StoreError` (another program's file, a newer version's), `sqlite3.Error`, `OSError`. Autocommit: the caller begins
    its transactions itself.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))
    name, uri = _name(place)
    connection = sqlite3.connect(name, uri=uri, timeout=busy_ms / 1000, isolation_level=None, check_same_thread=False)
    try:
        if isinstance(place, Path):
            _refuse_foreign(connection, place)
        if connection.execute("pragma page_count").fetchone()[0] == 0:
            connection.execute("pragma auto_vacuum = incremental")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma journal_size_limit = 4194304")
        connection.execute("pragma cache_size = -8192")
        register(connection)
        migrate(connection)
        renew(connection)
        connection.execute("pragma foreign_keys = on")
        return connection, _machine(connection)
    except BaseException:
        connection.close()
        raise


def _name(place: Place, query: str = "") -> tuple[str, bool]:
    if isinstance(place, Path):
        return (f"{place.absolute().as_uri()}{query}", True) if query else (str(place), False)
    return place, True


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Look before anything is changed: another program's database is left exactly as it is."""
    application = connection.execute("pragma application_id").fetchone()[0]
    if application != APPLICATION_ID and path.stat().st_size > 0:
        tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        if application or tables:
            raise StoreError(
                f"{path} holds something else than qm-proxy's database (application id {application:#x}, {len(tables)} tables).",
                remedy="Name another file with --db.",
                application_id=application,
                tables=tables,
            )


def _machine(connection: sqlite3.Connection) -> str:
    """This machine's id in this database. A database that was moved to another machine tells the two apart from then on."""
    name, now = platform.node() or "unknown", iso(time.time_ns())
    row = connection.execute(
        "select id from machines join meta on meta.key = 'machine' and meta.value = machines.id where machines.name = ?", (name,)
    ).fetchone()
    connection.execute("begin immediate")
    try:
        identifier = secrets.token_hex(8) if row is None else str(row[0])
        connection.execute(
            "insert into machines (id, name, platform, version, first_seen, last_seen) values (?, ?, ?, ?, ?, ?) "
            "on conflict(id) do update set version = excluded.version, platform = excluded.platform, "
            "last_seen = excluded.last_seen",
            (identifier, name, f"{platform.system()} {platform.machine()}", __version__, now, now),
        )
        connection.execute("insert or replace into meta values ('machine', ?)", (identifier,))
        # what a crash left open is over: nobody will close it
        connection.execute(
            "update exchanges set ending = 'shutdown', undecoded = 'The observer ended before this exchange did.' "
            "where ending is null and machine_id = ?",
            (identifier,),
        )
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # a full disk has already ended it
            connection.execute("rollback")
        raise
    return identifier


def open_for_reading(place: Place) -> sqlite3.Connection:
    """A connection that cannot write, with our SQL functions. Raises `StoreError` when there is no database of ours."""
    if isinstance(place, Path) and not place.is_file():
        raise StoreError(f"There is no database at {place}.", remedy="Start `qm-proxy serve`, or name another file with --db.")
    connection = None
    name, uri = _name(place, "?mode=ro&immutable=1" if _at_rest(place) else "?mode=ro")
    try:
        connection = sqlite3.connect(name, uri=uri, timeout=2, check_same_thread=False)
        connection.execute("pragma query_only = on")
        connection.execute("pragma cache_size = -16384")
        connection.execute("pragma mmap_size = 268435456")
        connection.execute("begin")  # one look, even while it is being made
        application = connection.execute("pragma application_id").fetchone()[0]
        empty = not application and not connection.execute("select count(*) from sqlite_master").fetchone()[0]
        connection.execute("commit")
    except sqlite3.Error as exc:
        if connection is not None:
            connection.close()
        failure = failure_of(exc)
        raise StoreError(f"{place}: {failure.message}", remedy=failure.remedy, path=str(place)) from exc
    if application != APPLICATION_ID:
        connection.close()
        if empty:
            raise StoreError(f"The database {place} is only just being made.", remedy="Try again.", empty=True)
        raise StoreError(f"{place} is not a database of qm-proxy.", remedy="Name another file with --db.", path=str(place))
    register(connection)
    return connection


def newer_step(connection: sqlite3.Connection) -> str | None:
    """A step of its making that this version does not know: then a newer qm-proxy wrote it."""
    try:
        rows = connection.execute("select name from _sqlite_migrations where migration_set = 'qm_proxy'").fetchall()
    except sqlite3.Error:
        return None
    return min({row[0] for row in rows} - {step.__name__ for step in STEPS}, default=None)


def _at_rest(place: Place) -> bool:
    """Whether nobody can write there and nothing waits in a log: an archive, a read-only disk. There SQLite cannot make the file
    that readers of a WAL database share, and must be told that it needs none."""
    if not isinstance(place, Path) or os.access(place.parent, os.W_OK):
        return False
    logs = [place.with_name(place.name + end) for end in ("-wal", "-shm")]
    return not any(log.exists() for log in logs)


def secret_key(path: Path) -> bytes:
    """The key of this database's message hashes, made at the first call: `PATH.key`, 0600. Raises `OSError`."""
    place = path.with_name(path.name + ".key")
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        key = place.read_bytes()
        if len(key) == KEY_BYTES:
            if stat.S_IMODE(place.stat().st_mode) & 0o077:
                place.chmod(0o600)
            return key
    key = secrets.token_bytes(KEY_BYTES)
    fresh = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(place)  # whole or not at all
    return key
