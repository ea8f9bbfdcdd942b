from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qm_proxy.store.database import in_memory, open_for_reading, open_for_writing
from qm_proxy.store.views import INDEXES, VIEWS, renew
from qm_proxy.store.writer import Writer


def test_every_view_can_be_asked_of_an_empty_database() -> None:
    connection, _ = open_for_writing(in_memory())
    for name in VIEWS:
        assert connection.execute(f"select * from {name}").fetchall() == []


def test_views_are_renewed_only_when_their_text_changed() -> None:
    connection, _ = open_for_writing(in_memory())
    assert not renew(connection)
    connection.execute("drop view slowest_exchanges")
    connection.execute("create view slowest_exchanges as select 1 as old")
    connection.execute("create view gone as select 1")
    connection.execute("update meta set value = 'of an older version' where key = 'views'")
    assert renew(connection)
    names = {row[0] for row in connection.execute("select name from sqlite_master where type = 'view'")}
    assert names == set(VIEWS)
    assert connection.execute("select * from slowest_exchanges").description[0][0] == "id"
    indexes = {row[0] for row in connection.execute("select name from sqlite_master where type = 'index' and sql is not null")}
    assert set(INDEXES) <= indexes


def _plan(connection: sqlite3.Connection, sql: str) -> str:
    return " ".join(row[3] for row in connection.execute(f"explain query plan {sql}"))


def test_lists_walk_an_index_and_sort_nothing() -> None:
    connection, _ = open_for_writing(in_memory())
    for where, index in (
        ("session_id = 'x'", "exchanges_session"),
        ("model = 'x'", "exchanges_model"),
        ("client = 'x'", "exchanges_client"),
        ("id < 'x'", "sqlite_autoindex_exchanges_1"),
    ):
        plan = _plan(connection, f"select * from exchanges e where {where} and ending is not null order by id desc limit 51")
        assert index in plan
        assert "TEMP B-TREE" not in plan
    assert "sessions_last" in _plan(connection, "select * from sessions order by last_at desc, id desc limit 51")
    assert "exchanges_day" in _plan(connection, "select * from daily_by_model")


def test_the_views_tell_what_was_stored(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    session = records.ids.new(records.now_ns)
    first = records.turn(session, 1, total_s=1.0)
    second = records.turn(session, 2, total_s=9.0, findings=[records.finding("tool.schema"), records.finding("tool.schema")])
    second.opened.placed.results = [records.result_of(first)]
    for record in (first, second):
        writer.closed(record)
    assert writer.flush()
    connection = open_for_reading(path)

    def ask(sql: str) -> list[Any]:
        return connection.execute(sql).fetchall()

    assert ask("select id, total_s from slowest_exchanges") == [(second.id, 9.0), (first.id, 1.0)]
    assert ask("select model, kind, findings, exchanges, tokens_wasted from findings_by_model") == [
        ("qwen3:8b", "tool.schema", 2, 1, 14)
    ]
    assert ask("select id, models, turns, exchanges, prefix_reused_percent from sessions_overview") == [
        (session, "qwen3:8b", 2, 2, 75.0)
    ]
    assert ask("select model, exchanges, failed, input_tokens from daily_by_model") == [("qwen3:8b", 2, 0, 1800)]
    assert ask("select tool, calls, invalid, turnaround_mean_s from tools_by_model") == [("bash", 2, 0, 2.5)]
    assert ask("select exchange_id, broken_role, repeated_percent from broken_prefixes order by 1") == [
        (first.id, "user", 90.0),
        (second.id, "user", 90.0),
    ]
    assert ask("select gaps_s from token_gaps limit 1") == [("[0.01,0.01,0.01,0.01]",)]
