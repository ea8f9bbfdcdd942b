"""The named questions, answered from the database. Read-only; any thread and any process may ask.

Rules that hold here:

- A list is one walk along an index from the cursor on, and a few look-ups for the items of that page: its cost does not grow
  with the database. `benchmarks/bench_store.py` holds every list and `show` to 50 ms at 100 k exchanges.
- As long as there is no database yet, everything is empty; a file that is moved away and made anew is opened anew.
- What is in flight, or was closed in the last second, is not here: `store.both` adds it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qm_proxy.errors import StoreError
from qm_proxy.ids import unix_ms_of
from qm_proxy.measure.series import coalesced, unpack, written
from qm_proxy.measure.wall_clock import iso, unix_ns_of_iso
from qm_proxy.store.database import Place, failure_of, newer_step, open_for_reading
from qm_proxy.store.queries import MAX_LIMIT, Json, pieces_json
from qm_proxy.store.retention import floor_id, sizes
from qm_proxy.store.shapes import (
    EXCHANGE,
    EXCHANGE_COLUMNS,
    FINDING_COLUMNS,
    RUN,
    RUN_COLUMNS,
    TURN_COLUMNS,
    call_json,
    exchange_json,
    finding_json,
    place_json,
    session_json,
)

__all__ = ["Stored"]

_DRIVEN = 5000  # so few findings of a kind are walked themselves; more, and the exchanges are
_TURNS = 500


class Stored:
    """Queries on the database at `place`: a file, or the `place` of a Writer in memory."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._pool: list[tuple[tuple[int, int] | None, sqlite3.Connection]] = []
        self._lock = threading.Lock()

    # --- exchanges ----------------------------------------------------------------------------------------------------

    def status(self) -> Json:
        with self._reading() as connection:
            if connection is None:
                return {"exchanges": 0, "in_flight": 0, "findings": 0, "bytes": 0, "forgotten": 0}
            tables = ("exchanges", "findings")
            count = {table: connection.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}
            return {**count, "in_flight": 0, "bytes": sizes(connection).file, "forgotten": 0}

    def exchanges(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        session: str | None = None,
        model: str | None = None,
        client: str | None = None,
        finding: str | None = None,
        since: str | None = None,
    ) -> Json:
        """Newest first. `finding`: a kind, or a family of them."""
        where, values = _bounds("e.id", limit, cursor, since)
        where.append("e.ending is not null")
        if since is not None:
            where.append("e.started_at >= ?")
            values.append(iso(unix_ns_of_iso(since)))
        with self._reading() as connection:
            if connection is None:
                return _page([], limit)
            for column, value in (("e.session_id", session), ("e.client", client)):
                if value is not None:
                    where.append(f"{column} = ?")
                    values.append(value)
            source = "exchanges e"
            if finding is not None:
                kinds = self._kinds(connection, finding)
                marks = ", ".join("?" * len(kinds))
                few = f"select count(*) from (select 1 from findings where kind in ({marks}) limit {_DRIVEN})"
                if connection.execute(few, kinds).fetchone()[0] < _DRIVEN:
                    source = f"(select distinct exchange_id from findings where kind in ({marks})) f cross join exchanges e"
                    where.append("e.id = f.exchange_id")
                    values = [*kinds, *values]
                else:
                    where.append(f"exists (select 1 from findings f where f.exchange_id = e.id and f.kind in ({marks}))")
                    values += kinds
            rows: list[Sequence[Any]] = []
            for name in [None] if model is None else self._names(connection, model):
                which = [*where, "e.model = ?"] if name is not None else where
                sql = f"select {EXCHANGE_COLUMNS} from {source} where {' and '.join(which)} order by e.id desc limit {limit + 1}"
                rows += connection.execute(sql, [*values, name] if name is not None else values)
            rows.sort(key=lambda row: str(row[0]), reverse=True)
            return _page(self._exchange_items(connection, rows[: limit + 1]), limit)

    def exchange(self, exchange_id: str) -> Json | None:
        """One exchange, with its place in its session and captured content if there is any."""
        with self._reading() as connection:
            if connection is None:
                return None
            sql = f"select {EXCHANGE_COLUMNS} from exchanges e where e.id = ? and e.ending is not null"
            items = self._exchange_items(connection, connection.execute(sql, (exchange_id,)).fetchall())
            if not items:
                return None
            item = items[0]
            place = connection.execute(f"select {TURN_COLUMNS} from turns t where t.exchange_id = ?", (exchange_id,)).fetchone()
            item["place"] = None if place is None else place_json(place)
            found = connection.execute("select * from contents where exchange_id = ?", (exchange_id,))
            if (content := found.fetchone()) is not None:
                # by name: a file that only was read so far may lack the latest columns
                kept = dict(zip((column[0] for column in found.description), content, strict=True))
                item |= {f"captured_{name}": kept[name] for name in ("request", "answer", "thinking")}
                item |= {name: kept[name] for name in ("redactions", "cut_bytes")}
                item |= pieces_json(kept.get("answer_pieces"), kept.get("thinking_pieces"))
            return item

    def chunks(self, exchange_id: str) -> Json | None:
        with self._reading() as connection:
            row = None
            if connection is not None:
                row = connection.execute(
                    "select start_unix_ns, resolution_ns, arrival, written, kinds, suspended from chunks where exchange_id = ?",
                    (exchange_id,),
                ).fetchone()
            if row is None:
                return None
            start, resolution, arrival, lags, kinds, suspended = row
            try:
                arrivals, taken = unpack(arrival), None if lags is None else written(arrival, lags)
            except ValueError:
                return None  # of a later version, or damaged
            return {
                "format": 1,
                "start_unix_ns": start,
                "resolution_ns": resolution,
                "arrival_ns": arrivals,
                "written_ns": taken,
                "kinds": json.loads(kinds),
                "coalesced": list(coalesced(arrival)),
                "suspended": json.loads(suspended) if suspended else [],
            }

    def export(self, *, since: str | None = None, chunks: bool = False) -> Iterator[Json]:
        """Every closed exchange, oldest first, one at a time; with `chunks`, each with its series."""
        with self._reading() as connection:
            after = "" if since is None else floor_id(unix_ns_of_iso(since) / 1e9)
            while connection is not None:
                where = "e.id > ? and e.ending is not null order by e.id limit 200"
                sql = f"select {EXCHANGE_COLUMNS} from exchanges e where {where}"
                items = self._exchange_items(connection, connection.execute(sql, (after,)).fetchall())
                for item in items:
                    yield item | {"series": self.chunks(item["id"])} if chunks else item
                if not items:
                    return
                after = items[-1]["id"]

    # --- findings -----------------------------------------------------------------------------------------------------

    def findings(self, *, limit: int = 50, cursor: str | None = None, kind: str | None = None, since: str | None = None) -> Json:
        where, values = _bounds("id", limit, cursor, since)
        with self._reading() as connection:
            if connection is None:
                return _page([], limit)
            rows: list[Sequence[Any]] = []
            for one in [None] if kind is None else self._kinds(connection, kind):
                which = [*where, "kind = ?"] if one is not None else where
                order = f"order by id desc limit {limit + 1}"
                sql = f"select {FINDING_COLUMNS} from findings where {' and '.join(which) or '1'} {order}"
                rows += connection.execute(sql, [*values, one] if one is not None else values)
            rows.sort(key=lambda row: str(row[0]), reverse=True)
            return _page([finding_json(row) for row in rows[: limit + 1]], limit)

    def findings_of(self, exchanges: Sequence[str]) -> dict[str, list[Json]]:
        """Exchange id → its findings as a whole, oldest first: the lists name only kind and severity."""
        found: dict[str, list[Json]] = {}
        with self._reading() as connection:
            if connection is not None:
                marks = ", ".join("?" * len(exchanges))
                sql = f"select {FINDING_COLUMNS} from findings where exchange_id in ({marks}) order by id"
                for row in connection.execute(sql, list(exchanges)):
                    finding = finding_json(row)
                    found.setdefault(finding["exchange_id"], []).append(finding)
        return found

    def named(self, start: str, *, limit: int = 4) -> list[str]:
        """Ids of exchanges and sessions that begin so, at most `limit`."""
        with self._reading() as connection:
            if connection is None:
                return []
            sql = (
                "select id from exchanges where id >= ? and id < ? union select id from sessions where id >= ? and id < ? limit ?"
            )
            return [row[0] for row in connection.execute(sql, (start, start + "g", start, start + "g", limit))]

    # --- sessions -----------------------------------------------------------------------------------------------------

    def sessions(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        client: str | None = None,
        model: str | None = None,
        finding: str | None = None,
        since: str | None = None,
    ) -> Json:
        """Those that were active last come first. `since`: of the last activity. The cursor: `last_at|id` of the last item."""
        _check_limit(limit)
        where: list[str] = []
        values: list[Any] = []
        if cursor is not None:
            last_at, _, identifier = cursor.partition("|")
            _check_cursor(identifier)
            where.append("(s.last_at, s.id) < (?, ?)")
            values += [last_at, identifier]
        if since is not None:
            where.append("s.last_at >= ?")
            values.append(iso(unix_ns_of_iso(since)))
        with self._reading() as connection:
            if connection is None:
                return _page([], limit)
            if client is not None:
                where.append("s.client = ?")
                values.append(client)
            if model is not None:
                names = self._names(connection, model)
                marks = ", ".join("?" * len(names))
                where.append(f"exists (select 1 from session_models m where m.session_id = s.id and m.model in ({marks}))")
                values += names
            if finding is not None:
                kinds = self._kinds(connection, finding)
                marks = ", ".join("?" * len(kinds))
                where.append(f"exists (select 1 from findings f where f.session_id = s.id and f.kind in ({marks}))")
                values += kinds
            order = f"order by s.last_at desc, s.id desc limit {limit + 1}"
            sql = f"select s.* from sessions s where {' and '.join(where) or '1'} {order}"
            items = self._session_items(connection, connection.execute(sql, values))
            page = _page(items, limit)
            if page["next_cursor"] is not None:
                last = page["items"][-1]
                page["next_cursor"] = f"{last['last_at']}|{last['id']}"
            return page

    def session(self, session_id: str, *, limit: int = _TURNS, cursor: str | None = None) -> Json | None:
        """One session with its exchanges, oldest first, each with its place, its calls and their turnaround. `cursor`: the id of
        the last exchange given."""
        with self._reading() as connection:
            if connection is None:
                return None
            _check_limit(limit)
            items = self._session_items(connection, connection.execute("select * from sessions s where s.id = ?", (session_id,)))
            if not items:
                return None
            if cursor is not None:
                _check_cursor(cursor)
            sql = (
                f"select {EXCHANGE_COLUMNS}, {TURN_COLUMNS} from turns t join exchanges e on e.id = t.exchange_id "
                f"where t.session_id = ? and t.exchange_id > ? and e.ending is not null order by t.exchange_id limit {limit + 1}"
            )
            rows = connection.execute(sql, (session_id, cursor or "")).fetchall()
            width = len(EXCHANGE)
            exchanges = self._exchange_items(connection, [row[:width] for row in rows])
            for item, row in zip(exchanges, rows, strict=True):
                item["place"] = place_json(row[width:])
            page = _page(exchanges, limit)
            return items[0] | {"items": page["items"], "next_cursor": page["next_cursor"]}

    def recent_turns(self, since_unix_s: float, *, limit: int = 20_000) -> list[Json]:
        """What a restarted observer must know to go on with live sessions: rows for `Sessions.resume`, oldest first."""
        with self._reading() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "select t.session_id, t.trajectory, t.exchange_id, t.turn, t.tip, t.expected, e.started_at, e.total_s, s.client, "
                "s.user_agent, s.client_session from turns t join exchanges e on e.id = t.exchange_id "
                "join sessions s on s.id = t.session_id "
                "where t.exchange_id >= ? and e.machine_id = (select value from meta where key = 'machine') "
                "order by t.exchange_id desc limit ?",
                (floor_id(since_unix_s), limit),
            ).fetchall()
            names = ("session_id", "trajectory", "exchange_id", "turn", "tip", "expected")
            return [
                dict(zip(names, row[:6], strict=True))
                | {"ended_unix_s": unix_ns_of_iso(row[6]) / 1e9 + (row[7] or 0.0)}
                | {"client": row[8], "user_agent": row[9], "client_session": row[10]}
                for row in reversed(rows)
            ]

    # --- runs of probes -----------------------------------------------------------------------------------------------

    def runs(self, *, limit: int = 50, cursor: str | None = None, state: str | None = None) -> Json:
        """Newest first by when they were started: a run's id says its kind, not its time."""
        _check_limit(limit)
        where, values = ["1"], []
        if state is not None:
            where.append("state = ?")
            values.append(state)
        with self._reading() as connection:
            if connection is None:
                return _page([], limit)
            if cursor is not None:
                last = connection.execute("select ifnull(started_at, ''), id from runs where id = ?", (cursor,)).fetchone()
                if last is None:
                    raise ValueError(_NO_CURSOR)
                where.append("(ifnull(started_at, ''), id) < (?, ?)")
                values += last
            order = "order by ifnull(started_at, '') desc, id desc"
            sql = f"select {RUN_COLUMNS} from runs where {' and '.join(where)} {order} limit {limit + 1}"
            return _page([dict(zip(RUN, row, strict=True)) for row in connection.execute(sql, values)], limit)

    def run(self, run_id: str) -> Json | None:
        """One run with its settings, its result and its report (Markdown)."""
        with self._reading() as connection:
            if connection is None:
                return None
            sql = f"select {RUN_COLUMNS}, settings, result, report from runs where id = ?"
            row = connection.execute(sql, (run_id,)).fetchone()
            if row is None:
                return None
            item = dict(zip([*RUN, "settings", "result", "report"], row, strict=True))
            for name in ("settings", "result"):
                item[name] = None if item[name] is None else json.loads(item[name])
            return item

    # --- within -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that is nobody else's meanwhile; None while there is no database. Raises `StoreError` when it is none of
        ours. Given back, it serves the next question: there are as many as questions at the same time."""
        inode, size = self._there()
        connection = self._idle(inode) or self._opened(inode, size)
        try:
            yield connection
        except sqlite3.Error as exc:
            newer = None
            if connection is not None:
                newer = newer_step(connection)
                connection.close()
                connection = None
            if newer is not None:
                raise self._too_new(newer) from exc
            failure = failure_of(exc)
            raise StoreError(failure.message, remedy=failure.remedy, path=str(self.place)) from exc
        finally:
            if connection is not None:
                with self._lock:
                    self._pool.append((inode, connection))

    def _there(self) -> tuple[tuple[int, int] | None, int]:
        """Which file it is, and its size; (None, 0) without one. In memory there is none, and it is always the same."""
        if not isinstance(self.place, Path):
            return (0, 0), 1
        try:
            there = self.place.stat()
        except FileNotFoundError:
            return None, 0
        return (there.st_dev, there.st_ino), there.st_size

    def _idle(self, inode: tuple[int, int] | None) -> sqlite3.Connection | None:
        """One that was given back and is of this file; those of a file that is gone are closed."""
        with self._lock:
            while self._pool:
                of, connection = self._pool.pop()
                if of == inode:
                    return connection
                connection.close()
        return None

    def _opened(self, inode: tuple[int, int] | None, size: int) -> sqlite3.Connection | None:
        if inode is None:
            return None
        try:
            connection = open_for_reading(self.place)
        except StoreError as exc:
            if not size or exc.evidence.get("empty"):
                return None
            raise
        made = "select count(*) from sqlite_master where name in ('exchanges', 'sessions_last', 'slowest_exchanges')"
        if connection.execute(made).fetchone()[0] < 3:
            newer = newer_step(connection)
            connection.close()
            if newer is not None:
                raise self._too_new(newer)
            return None
        return connection

    def _too_new(self, step: str) -> StoreError:
        return StoreError(
            f"{self.place} was written by a newer qm-proxy (step {step!r}), and this one cannot read it.",
            remedy="Upgrade qm-proxy, or name another file with --db.",
            path=str(self.place),
        )

    def close(self) -> None:
        """Close what is not in use. Another question opens anew."""
        with self._lock:
            for _, connection in self._pool:
                connection.close()
            self._pool.clear()

    @staticmethod
    def _kinds(connection: sqlite3.Connection, kind: str) -> list[str]:
        """The kinds of a family that there are; the kind itself when there is none, so that the answer is empty."""
        found = connection.execute(
            "with recursive kinds(kind) as (select min(kind) from findings union all "
            "select (select min(kind) from findings where kind > kinds.kind) from kinds where kinds.kind is not null) "
            "select kind from kinds where kind = ?1 or substr(kind, 1, length(?1) + 1) = ?1 || '.'",
            (kind,),
        )
        return [row[0] for row in found] or [kind]

    @staticmethod
    def _names(connection: sqlite3.Connection, model: str) -> list[str]:
        """A model's names: with and without ":latest" it is the same."""
        names = [model] if ":" in model else [model, f"{model}:latest"]
        if model.endswith(":latest"):
            names.append(model.removesuffix(":latest"))
        marks = ", ".join("?" * len(names))
        found = [row[0] for row in connection.execute(f"select name from models where name in ({marks})", names)]
        return found or [model]

    @staticmethod
    def _exchange_items(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> list[Json]:
        ids = [row[0] for row in rows]
        calls: dict[str, list[Json]] = defaultdict(list)
        findings: dict[str, list[Json]] = defaultdict(list)
        for some in _slices(ids, 500):
            marks = ", ".join("?" * len(some))
            for exchange_id, *call in connection.execute(
                "select exchange_id, call_id, name, t_s, argument_bytes, valid, problems, turnaround_s, result_exchange_id, "
                f"result_is_error from tool_calls where exchange_id in ({marks}) order by exchange_id, position",
                some,
            ):
                calls[exchange_id].append(call_json(call))
            for exchange_id, *finding in connection.execute(
                f"select exchange_id, id, kind, severity from findings where exchange_id in ({marks}) order by id", some
            ):
                findings[exchange_id].append(dict(zip(("id", "kind", "severity"), finding, strict=True)))
        return [exchange_json(row, calls[row[0]], findings[row[0]]) for row in rows]

    @staticmethod
    def _session_items(connection: sqlite3.Connection, cursor: sqlite3.Cursor) -> list[Json]:
        names = [column[0] for column in cursor.description]
        items = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        models: dict[str, list[str]] = defaultdict(list)
        for some in _slices([item["id"] for item in items], 500):
            marks = ", ".join("?" * len(some))
            sql = f"select session_id, model from session_models where session_id in ({marks}) order by exchanges desc"
            for session_id, model in connection.execute(sql, some):
                models[session_id].append(model)
        return [session_json(item, models[item["id"]]) for item in items]


# --- pages ------------------------------------------------------------------------------------------------------------


_NO_CURSOR = "The cursor is none that a list gave: take `next_cursor` of the page before."


def _page(items: list[Json], limit: int) -> Json:
    """`items` may hold one more than the page: then there is a next one."""
    more = len(items) > limit
    items = items[:limit]
    return {"items": items, "next_cursor": items[-1]["id"] if more else None}


def _bounds(column: str, limit: int, cursor: str | None, since: str | None) -> tuple[list[str], list[Any]]:
    _check_limit(limit)
    where: list[str] = []
    values: list[Any] = []
    if cursor is not None:
        _check_cursor(cursor)
        where.append(f"{column} < ?")
        values.append(cursor)
    if since is not None:
        where.append(f"{column} >= ?")
        values.append(floor_id(unix_ns_of_iso(since) / 1e9))
    return where, values


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"Expected a limit from 1 to {MAX_LIMIT}, found {limit}.")


def _check_cursor(cursor: str) -> None:
    try:
        unix_ms_of(cursor)
    except ValueError as exc:
        raise ValueError(_NO_CURSOR) from exc


def _slices(values: list[str], size: int) -> Iterable[list[str]]:
    return (values[i : i + size] for i in range(0, len(values), size))
