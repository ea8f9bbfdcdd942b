from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.errors import StoreError
from qm_proxy.store.database import open_for_reading, open_for_writing
from qm_proxy.store.merge import merge
from qm_proxy.store.writer import Writer


@pytest.fixture
def machines(tmp_path: Path, records: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three machines' databases, with a session of three turns and a run each."""
    paths = []
    for name in ("desk", "laptop", "rack"):
        monkeypatch.setattr("platform.node", lambda name=name: name)
        path = tmp_path / f"{name}.db"
        writer = Writer(path)
        writer.start()
        session = records.ids.new(records.now_ns)
        for turn in (1, 2, 3):
            writer.closed(records.turn(session, turn, findings=[records.finding()]))
        run = records.ids.new(records.now_ns)
        writer.run({"id": run, "kind": "audit", "state": "running", "started_at": "2026-11-24T12:00:00Z"})
        assert writer.stop()
        paths.append(path)
    monkeypatch.setattr("platform.node", lambda: "desk")
    return paths


def _counts(path: Path) -> dict[str, int]:
    connection = open_for_reading(path)
    tables = ("machines", "sessions", "exchanges", "turns", "chunks", "tool_calls", "findings", "runs")
    return {table: connection.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


def test_everything_comes_together_once(machines: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "all.db"
    first = merge(target, machines)
    assert {table: n for table, n in first.items() if n} == {
        "machines": 3,
        "models": 3,  # one, seen later by the second and the third
        "sessions": 3,
        "session_models": 3,
        "exchanges": 9,
        "turns": 9,
        "chunks": 9,
        "tool_calls": 9,
        "findings": 9,
        "runs": 3,
    }
    counts = _counts(target)
    assert counts["exchanges"] == 9
    assert sum(merge(target, machines).values()) == 0
    assert sum(merge(target, [target]).values()) == 0
    assert _counts(target) == counts
    connection = open_for_reading(target)
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert connection.execute("pragma foreign_key_check").fetchall() == []
    by_machine = connection.execute("select m.name, count(*) from exchanges e join machines m on m.id = e.machine_id group by 1")
    assert by_machine.fetchall() == [("desk", 3), ("laptop", 3), ("rack", 3)]


def test_the_later_state_wins_in_either_order(machines: list[Path], tmp_path: Path, records: Any) -> None:
    early, source = tmp_path / "early.db", machines[1]
    merge(early, [source])
    stored = open_for_reading(source)
    session, run = stored.execute("select id from sessions").fetchone()[0], stored.execute("select id from runs").fetchone()[0]
    stored.close()
    writer = Writer(source)
    writer.start()
    writer.closed(records.turn(session, 4))
    writer.run(
        {"id": run, "kind": "audit", "state": "done", "started_at": "2026-11-24T12:00:00Z", "ended_at": "2026-11-24T13:00:00Z"}
    )
    assert writer.stop()
    forth, back = tmp_path / "forth.db", tmp_path / "back.db"
    merge(forth, [early, source])
    merge(back, [source, early])
    for path in (forth, back):
        connection = open_for_reading(path)
        assert connection.execute("select exchanges, turns from sessions").fetchall() == [(4, 4)]
        assert connection.execute("select state from runs").fetchall() == [("done",)]


def test_a_source_is_not_changed(machines: list[Path], tmp_path: Path) -> None:
    before = machines[0].read_bytes()
    merge(tmp_path / "all.db", machines)
    assert machines[0].read_bytes() == before


def test_a_source_of_an_older_version_is_upgraded_in_a_copy(
    machines: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_column_more(db: Any) -> None:
        db.execute("alter table exchanges add column mood text")

    from qm_proxy.store import merge as module
    from qm_proxy.store import migrations

    steps = (*migrations.STEPS, one_column_more)
    monkeypatch.setattr(migrations, "STEPS", steps)
    monkeypatch.setattr(module, "STEPS", steps)
    target = tmp_path / "new.db"
    assert merge(target, machines[:1])["exchanges"] == 3
    assert open_for_reading(target).execute("select count(*) from exchanges where mood is null").fetchone()[0] == 3
    assert open_for_reading(machines[0]).execute("select * from exchanges").description[-1][0] != "mood"


def test_what_cannot_be_merged_is_told_and_changes_nothing(machines: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "all.db"
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("create table t (x)")
    connection.close()
    for source in (other, tmp_path / "missing.db"):
        with pytest.raises(StoreError, match="--db"):
            merge(target, [machines[0], source])
    assert not target.exists()


def test_a_merge_into_a_database_that_is_being_written(
    machines: list[Path], records: Any, writing: Callable[..., Writer]
) -> None:
    writer = writing(machines[0])
    merge(machines[0], machines[1:])
    writer.closed(records.turn(records.ids.new(records.now_ns), 1))
    assert writer.flush()
    assert _counts(machines[0])["exchanges"] == 10


def test_rows_of_both_machines_refer_to_their_own(machines: list[Path], tmp_path: Path) -> None:
    target, identifier = open_for_writing(tmp_path / "all.db")
    target.close()
    merge(tmp_path / "all.db", machines[1:])
    own = open_for_reading(tmp_path / "all.db").execute("select value from meta where key = 'machine'").fetchone()[0]
    assert own == identifier
