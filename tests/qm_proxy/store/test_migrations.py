from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest
from sqlite_utils import Database, Migrations

from qm_proxy.errors import StoreError
from qm_proxy.store.migrations import APPLICATION_ID, STEPS, migrate


@pytest.fixture
def connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def test_a_new_database_gets_every_step_once(connection: sqlite3.Connection) -> None:
    assert migrate(connection) == [step.__name__ for step in STEPS]
    assert migrate(connection) == []
    assert connection.execute("pragma application_id").fetchone()[0] == APPLICATION_ID
    recorded = [row[0] for row in connection.execute("select name from _sqlite_migrations")]
    assert recorded == [step.__name__ for step in STEPS]


def test_a_database_of_another_program_is_refused_and_left_alone(connection: sqlite3.Connection) -> None:
    connection.execute("create table notes (text)")
    with pytest.raises(StoreError, match="something else"):
        migrate(connection)
    assert [row[0] for row in connection.execute("select name from sqlite_master")] == ["notes"]


def test_another_programs_application_id_is_refused(connection: sqlite3.Connection) -> None:
    connection.execute("pragma application_id = 1234")
    with pytest.raises(StoreError, match="0x4d2"):
        migrate(connection)


def test_a_newer_versions_database_is_refused(connection: sqlite3.Connection) -> None:
    migrate(connection)
    connection.execute(
        "insert into _sqlite_migrations (migration_set, name, applied_at) values ('qm_proxy', 'from_the_future', '')"
    )
    with pytest.raises(StoreError, match="from_the_future") as caught:
        migrate(connection)
    assert caught.value.evidence["steps"] == ["from_the_future"]


def test_a_kill_between_the_mark_and_the_first_table_is_mended(connection: sqlite3.Connection) -> None:
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    assert migrate(connection) == [step.__name__ for step in STEPS]


def test_opening_an_existing_database_loads_no_sqlite_utils(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("db") / "qm.db"
    script = (
        "import sys, pathlib\nfrom qm_proxy.store.database import open_for_writing\n"
        f"c, _ = open_for_writing(pathlib.Path({str(path)!r}))\nc.close()\nprint('sqlite_utils' in sys.modules)"
    )

    def run() -> str:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()

    assert [run(), run()] == ["True", "False"]


def test_a_database_of_the_first_version_keeps_its_texts(connection: sqlite3.Connection) -> None:
    """As written before the lengths of chunks were kept."""
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    first = Migrations("qm_proxy")
    first(name="first_tables")(STEPS[0])
    first.apply(Database(connection))
    connection.execute("insert into contents values ('x', 'ask', 'answer', null, 0, 0)")
    assert migrate(connection) == [step.__name__ for step in STEPS[1:]]
    assert connection.execute("select answer, answer_pieces, thinking_pieces from contents").fetchone() == ("answer", None, None)
