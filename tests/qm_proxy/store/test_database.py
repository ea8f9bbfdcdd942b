from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.errors import StoreError
from qm_proxy.store.database import failure_of, in_memory, open_for_reading, open_for_writing, secret_key
from qm_proxy.store.writer import Writer


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_database_log_and_key_are_their_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        connection, _ = open_for_writing(path)
        secret_key(path)
        reader = open_for_reading(path)
        reader.execute("select count(*) from exchanges").fetchone()
    finally:
        os.umask(before)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["qm.db", "qm.db-shm", "qm.db-wal", "qm.db.key"]
    assert [_mode(file) for file in files] == [0o600] * 4
    reader.close()
    connection.close()


def test_it_is_in_wal_and_gives_space_back_in_steps(path: Path) -> None:
    connection, _ = open_for_writing(path)
    assert [connection.execute(f"pragma {name}").fetchone()[0] for name in ("journal_mode", "auto_vacuum", "foreign_keys")] == [
        "wal",
        2,
        1,
    ]
    connection.close()


def test_a_machine_keeps_its_id_and_another_gets_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for name in ("desk", "desk", "laptop", "laptop"):
        monkeypatch.setattr("platform.node", lambda name=name: name)
        connection, identifier = open_for_writing(path)
        connection.close()
        ids.append(identifier)
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_what_a_crash_left_open_is_ended(path: Path, records: Any, writing: Callable[..., Any]) -> None:
    writer = writing(path)
    opened = records.opened()
    finding = records.finding("model.hung")
    finding.exchange_id = opened.id
    writer.opened(opened)
    writer.found(finding)
    assert writer.flush()
    writer.stop()
    connection, _ = open_for_writing(path)
    rows = connection.execute("select ending, undecoded from exchanges").fetchall()
    assert rows == [("shutdown", "The observer ended before this exchange did.")]
    assert connection.execute("select kind from findings").fetchall() == [("model.hung",)]
    connection.close()


def test_another_programs_file_is_refused_byte_for_byte_unchanged(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("create table logs (text)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="--db"):
        open_for_writing(path)
    with pytest.raises(StoreError, match="--db"):
        open_for_reading(path)
    assert path.read_bytes() == before
    assert not Path(f"{path}-wal").exists()


def test_a_file_that_is_no_database_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        open_for_writing(path)
    failure = failure_of(caught.value)
    assert (failure.state, failure.lasting) == ("corrupt", True)
    with pytest.raises(StoreError, match="not a database"):
        open_for_reading(path)


def test_reading_needs_a_database(path: Path) -> None:
    with pytest.raises(StoreError, match="There is no database"):
        open_for_reading(path)
    assert not path.parent.exists()


def test_a_reader_cannot_write(path: Path) -> None:
    connection, _ = open_for_writing(path)
    reader = open_for_reading(path)
    with pytest.raises(sqlite3.OperationalError):
        reader.execute("delete from meta")
    reader.close()
    connection.close()


def test_a_database_in_memory_is_shared_by_name() -> None:
    place = in_memory()
    connection, identifier = open_for_writing(place)
    assert open_for_reading(place).execute("select id from machines").fetchall() == [(identifier,)]
    with pytest.raises(StoreError):
        open_for_reading(in_memory())
    connection.close()


def test_the_key_is_made_once_and_mended_when_open_to_others(path: Path) -> None:
    key = secret_key(path)
    assert len(key) == 32
    place = path.with_name("qm.db.key")
    place.chmod(0o644)
    assert secret_key(path) == key
    assert _mode(place) == 0o600
    place.write_bytes(b"torn")
    assert len(secret_key(path)) == 32


@pytest.mark.parametrize(
    ("exc", "state", "lasting"),
    [
        (OSError(28, "No space left on device"), "full", True),
        (OSError(13, "Permission denied"), "unavailable", True),
        (OSError(30, "Read-only file system"), "read_only", True),
        (StoreError("other"), "foreign", True),
        (RuntimeError("ours"), "failing", True),
        (sqlite3.OperationalError("odd"), "failing", True),
    ],
)
def test_failures_have_a_meaning(exc: Exception, state: str, lasting: bool) -> None:
    failure = failure_of(exc)
    assert (failure.state, failure.lasting) == (state, lasting)
    assert failure.message


def test_many_open_a_new_database_at_the_same_time(path: Path, records: Any) -> None:
    """Two proxies started at once: every writer gets there in the end, and what each was given is stored."""
    writers = [Writer(path, linger_s=0.0) for _ in range(6)]
    for writer in writers:
        writer.start()
        writer.closed(records.record())
    assert all(writer.flush(30) for writer in writers)
    assert all(writer.stop() for writer in writers)
    reader = open_for_reading(path)
    assert reader.execute("select count(*) from exchanges").fetchone() == (6,)
    assert reader.execute("pragma integrity_check").fetchall() == [("ok",)]
    reader.close()


def test_a_database_at_rest_where_nobody_can_write(path: Path, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive: SQLite could not make the file that readers share. With a log beside it, what that holds must be seen."""
    writer = Writer(path)
    writer.start()
    writer.closed(records.record())
    assert writer.stop()
    monkeypatch.setattr("os.access", lambda *_: False)
    reader = open_for_reading(path)
    assert reader.execute("select count(*) from exchanges").fetchone() == (1,)
    assert not path.with_name("qm.db-shm").exists()
    reader.close()
    live, _ = open_for_writing(path)
    reader = open_for_reading(path)
    assert path.with_name("qm.db-shm").exists()
    assert reader.execute("select count(*) from exchanges").fetchone() == (1,)
    reader.close()
    live.close()
