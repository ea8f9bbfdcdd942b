from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.ids import Ids, unix_ms_of
from qm_proxy.store.database import open_for_writing
from qm_proxy.store.retention import STEP, Retention, floor_id, sizes
from qm_proxy.store.writer import Writer


@pytest.fixture
def filled(path: Path, records: Any, writing: Callable[..., Writer]) -> tuple[sqlite3.Connection, Any]:
    """Six hundred exchanges, one a second, ten to a session, each with something in every table."""
    writer = writing(path)
    for _ in range(60):
        session = records.ids.new(records.now_ns)
        for turn in range(1, 11):
            record = records.turn(session, turn, findings=[records.finding()], chunks=100)
            writer.closed(record)
    assert writer.flush()
    writer.stop()
    return open_for_writing(path)[0], records


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"select count(*) from {table}").fetchone()[0])


_OF_EXCHANGES = ("exchanges", "turns", "chunks", "tool_calls", "findings")


def test_what_is_too_old_goes_with_everything_that_belongs_to_it(filled: tuple[sqlite3.Connection, Any]) -> None:
    connection, records = filled
    now = records.now_ns / 1e9
    retention = Retention(keep_s=100.5, keep_bytes=None)
    steps = 0
    while retention.step(connection, now):
        steps += 1
    assert [_count(connection, table) for table in _OF_EXCHANGES] == [101] * 5
    assert retention.deleted == 499
    assert steps >= 499 // STEP
    assert _count(connection, "sessions") == 11
    assert connection.execute("pragma foreign_key_check").fetchall() == []


def test_a_session_that_goes_on_keeps_its_sums(filled: tuple[sqlite3.Connection, Any]) -> None:
    connection, records = filled
    retention = Retention(keep_s=4.5, keep_bytes=None)
    while retention.step(connection, records.now_ns / 1e9):
        pass
    assert connection.execute("select exchanges, turns from sessions").fetchall() == [(10, 10)]
    assert _count(connection, "exchanges") == 5


def test_what_is_too_much_goes_oldest_first_and_space_is_given_back(filled: tuple[sqlite3.Connection, Any]) -> None:
    connection, records = filled
    ids = [row[0] for row in connection.execute("select id from exchanges order by id")]
    before = sizes(connection)
    limit = before.used // 2
    retention = Retention(keep_s=None, keep_bytes=limit)
    while retention.step(connection, records.now_ns / 1e9):
        pass
    left = [row[0] for row in connection.execute("select id from exchanges order by id")]
    assert 0 < len(left) < 400
    assert left == ids[-len(left) :]
    after = sizes(connection)
    assert after.used <= limit
    connection.execute("pragma wal_checkpoint(truncate)")
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_free_pages_leave_the_file(filled: tuple[sqlite3.Connection, Any], path: Path) -> None:
    connection, _ = filled
    connection.execute("create table ballast (bytes blob)")
    connection.executemany("insert into ballast values (?)", [(bytes(4000),)] * 5000)
    connection.execute("pragma wal_checkpoint(truncate)")
    large = path.stat().st_size
    connection.execute("drop table ballast")
    retention = Retention(None, None)
    while retention.step(connection, 0):
        pass
    connection.execute("pragma wal_checkpoint(truncate)")
    assert path.stat().st_size < large - 15_000_000
    assert retention.given_back_bytes > 15_000_000


def test_nothing_is_done_without_need(filled: tuple[sqlite3.Connection, Any]) -> None:
    connection, records = filled
    before = connection.total_changes
    assert not Retention(keep_s=10_000, keep_bytes=1 << 40).step(connection, records.now_ns / 1e9)
    assert connection.total_changes == before


def test_a_failing_step_leaves_no_transaction_open(filled: tuple[sqlite3.Connection, Any]) -> None:
    connection, records = filled
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_DELETE else sqlite3.SQLITE_OK)
    with pytest.raises(sqlite3.DatabaseError):
        Retention(1.0, None).step(connection, records.now_ns / 1e9 + 1e6)
    connection.set_authorizer(None)
    assert not connection.in_transaction
    assert _count(connection, "exchanges") == 600


def test_the_floor_of_an_instant_lies_below_its_ids() -> None:
    ids = Ids()
    for unix_ms in (0, 1_790_000_000_123):
        floor = floor_id(unix_ms / 1000)
        assert unix_ms_of(floor) == unix_ms
        assert floor <= ids.new(unix_ms * 1_000_000)
